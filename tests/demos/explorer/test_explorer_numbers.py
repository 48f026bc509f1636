"""What the page computes while one plays is what the package computes: the same numbers go through both."""

import numpy as np
import pytest

from tinydiff.diffusion import Schedule, q_sample, q_x_t_given_x_s

pytestmark = [pytest.mark.program, pytest.mark.browser]

NAMES = ("linear", "cosine", "quadratic", "sigmoid", "constant")


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_tables_are_the_schedules(page, name):
    """beta, alpha, alpha_bar, 1 - alpha_bar and log SNR at every t from 0 to T, from the betas in float32."""
    schedule = getattr(Schedule, name)()
    tables = page.execute_script(
        """
        const s = scheduleOf(arguments[0]);
        const logs = s.alphaBar.map((_, t) => logSnr(s, t));
        return [s.T, s.beta, s.alpha, s.alphaBar, s.oneMinusAlphaBar, logs];
        """,
        name,
    )
    T, beta, alpha, alpha_bar, rest, log_snr = tables
    assert T == schedule.T and log_snr[0] is None
    np.testing.assert_allclose(beta, schedule.beta, rtol=6e-8)
    np.testing.assert_allclose(alpha, schedule.alpha, atol=6e-8)
    np.testing.assert_allclose(rest, schedule.one_minus_alpha_bar, rtol=1e-6)
    np.testing.assert_allclose(log_snr[1:], schedule.log_snr[1:], atol=1e-4)
    # An error of beta, 6e-8 of it at most, is divided by 1 - beta; near T a cosine's beta is nearly 1.
    bound = np.cumsum(6e-8 * schedule.beta / schedule.alpha) + 1e-12
    assert (abs(np.log(alpha_bar) - np.log(schedule.alpha_bar)) <= bound).all()


def test_a_step_and_a_jump_are_those_of_the_package(page, rng):
    """eq. 2 and eq. 4 with the same x and the same noise, at t = 1, in the middle and at T."""
    schedule = Schedule.linear()
    x, noise = rng.standard_normal((2, 1, 12))
    for t in (1, 500, 1000):
        step, jump = page.execute_script(
            """
            const [x, noise, t] = arguments;
            const schedule = scheduleOf("linear");
            return [qStep(schedule, x, t, noise), qSample(schedule, x, t, noise)];
            """,
            x[0].tolist(), noise[0].tolist(), t,
        )  # fmt: skip
        mean, var = q_x_t_given_x_s(schedule, x, t - 1, t)
        np.testing.assert_allclose(step, (mean + var**0.5 * noise)[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(jump, q_sample(schedule, x, t, noise)[0], rtol=1e-6, atol=1e-7)


def test_the_chain_is_its_steps_and_the_jump_has_their_noise(page):
    """Step by step with the numbers of its seed; the jump is the same picture up to float32's rounding."""
    x_0, noises, chain, jump = page.execute_script("""
      const [schedule, x0, draw] = [scheduleOf("linear"), pixelsOf(3), normals(7)];
      const run = makeChain(schedule, x0, 7);
      const noises = Array.from({ length: 20 }, () => [...draw(x0.length)]);
      const times = [0, 1, 5, 20, 300, 1000];
      return [[...x0], noises, ...["chain", "jump"].map((way) => times.map((t) => [...run[way](t)]))];
    """)
    schedule, x_t, by_hand = Schedule.linear(), np.array(x_0)[None], {0: np.array(x_0)}
    for t, noise in enumerate(noises, 1):
        mean, var = q_x_t_given_x_s(schedule, x_t, t - 1, t)
        x_t = mean + var**0.5 * np.array(noise)
        by_hand[t] = x_t[0]
    for moment, t in enumerate((0, 1, 5, 20)):
        np.testing.assert_allclose(chain[moment], by_hand[t], atol=1e-5)
    np.testing.assert_allclose(chain, jump, atol=2e-5)  # a thousand roundings of 6e-8 on numbers up to 4
    std = schedule.one_minus_alpha_bar[300] ** 0.5
    noise = np.array(chain[4]) - schedule.alpha_bar[300] ** 0.5 * np.array(x_0)
    assert abs(noise.std() - std) <= 4 * std / (2 * 784) ** 0.5  # 4 standard errors


def test_the_pages_pixels_are_those_of_its_pictures(page):
    """A picture of the page has its bytes' levels, and what is painted shows them, white where it is above 1."""
    levels, pixels, painted = page.execute_script("""
      const canvas = document.createElement("canvas");
      const pixels = pixelsOf(3);
      const beyond = pixels.map((value, i) => (i === 5 ? 1.7 : i === 6 ? -1.7 : value));
      paint(canvas, beyond, "");
      const image = canvas.getContext("2d").getImageData(0, 0, WIDTH, HEIGHT).data;
      return [[...bytesOf(data.forward.pictures[3])], [...pixels], [...image]];
    """)
    levels = np.array(levels)
    assert len(set(levels.tolist())) > 20
    np.testing.assert_allclose(pixels, levels / 127.5 - 1, atol=1e-6)
    red, green, blue, alpha = np.array(painted).reshape(-1, 4).T
    levels[5:7] = 255, 0
    assert (alpha == 255).all() and (red == green).all() and (red == blue).all()
    assert abs(red - levels).max() <= 1


def test_the_pages_noise_is_standard_normal(page):
    """Mean, variance, skewness and kurtosis within 4 standard errors, neighbours without correlation; seeds differ."""
    drawn, again, other, odd = page.execute_script("""
      return [[...normals(3)(20000)], [...normals(3)(20000)], [...normals(4)(20000)], normals(3)(5).length];
    """)
    z = np.array(drawn)
    assert drawn == again and odd == 5
    for power, mean, var in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) <= 4 * (var / len(z)) ** 0.5, power
    for one, two in ((z[:-1], z[1:]), (z[:-2], z[2:]), (z, np.array(other))):
        assert abs((one * two).mean()) <= 4 / len(z) ** 0.5


def test_the_readout_is_that_of_the_time_that_is_shown(page):
    """sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t) and log SNR to 3 digits, and a gap that float32 explains."""
    time = page.find_element("css selector", "#forward input[type=range]")
    schedule = Schedule.linear()
    for t in (1, 400, 1000):
        page.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", time, t
        )
        texts = [dd.text for dd in page.find_elements("css selector", "#forward-readout dd")]
        *shown, gap = (float(text.replace("−", "-")) for text in texts)
        a, rest = schedule.alpha_bar[t], schedule.one_minus_alpha_bar[t]
        np.testing.assert_allclose(shown, [a**0.5, rest**0.5, np.log(a / rest)], rtol=0.006)
        assert gap < 2e-5 and (t == 1 or gap > 0)

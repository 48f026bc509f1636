"""What the page computes while one plays is what the package computes: the same numbers go through both."""

import ideal
import numpy as np
import pytest
from exact import ExactModel, mixture_eps_fn

from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddpm_step,
    q_sample,
    q_x_s_given_x_t_x_0,
    q_x_t_given_x_s,
    timestep_pairs,
    x_0_from_eps,
)

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


# --------------------------------------------------------------------------------------- the plane: an exact denoiser

SCHEDULE = Schedule.linear()


def plane(page):
    """The mixtures of the page: {name: (centres (K, 2), variance, the centres of the label)}."""
    found = page.execute_script("""
      return Object.entries(PLANES).map(([name, { centres, variance, isLabel }]) =>
        [name, centres, variance, centres.map((_, k) => k).filter(isLabel)]);
    """)
    return {name: (np.array(centres), variance, label) for name, centres, variance, label in found}


def test_the_eight_gaussians_are_those_of_ideal_py(page):
    """Centres, width, and the two of the class; the moons are on the half circles of points_2d.py."""
    planes = plane(page)
    centres, variance, label = planes["eight Gaussians"]
    np.testing.assert_allclose(centres, ideal.CENTRES, atol=1e-12)
    assert variance == pytest.approx(ideal.STD**2) and tuple(label) == ideal.CLASS
    centres, variance, label = planes["two moons"]
    middle = 2**0.5 * np.array([0.5, 0.25])
    for side, part in ((-1, centres[label]), (1, np.delete(centres, label, 0))):
        np.testing.assert_allclose(np.hypot(*(side * part + middle).T), 2**0.5, atol=1e-12)
        assert (side * part + middle)[:, 1].min() > -1e-9  # the upper half
    assert variance == pytest.approx(0.1**2)


@pytest.mark.parametrize("name", ["eight Gaussians", "two moons", "your own"])
def test_the_pages_denoiser_is_exact(page, rng, name):
    """eps_hat of the mixture, and guided to its label, at 9 places and every kind of t: that of demos/exact.py."""
    centres, variance, label = plane(page)[name]
    fns = [mixture_eps_fn(SCHEDULE, np.full(len(c), 1 / len(c)), c, variance) for c in (centres[label], centres)]
    model, x = ExactModel(fns), 3 * rng.standard_normal((9, 2))
    for t in (1, 20, 300, 1000):
        for scale in (0, 1, 4):
            eps = page.execute_script(
                """
                const [name, x, t, scale] = arguments;
                const { centres, variance, isLabel } = PLANES[name];
                const label = { centres: centres.filter((_, k) => isLabel(k)), variance };
                return [...guidedEps(scheduleOf("linear"), { all: { centres, variance }, label }, scale, x, t)];
                """,
                name, x.ravel().tolist(), t, scale,
            )  # fmt: skip
            expected = classifier_free(model, 0, scale)(x, t)
            np.testing.assert_allclose(np.reshape(eps, (9, 2)), expected, rtol=2e-5, atol=2e-5)


def by_hand(mistake, schedule, x, eps, t, s, noise):
    """A step of DDPM with a mistake, made of the package's own parts."""
    x_0 = x_0_from_eps(schedule, x, t, eps)
    mean, var = q_x_s_given_x_t_x_0(schedule, x, x_0, t, s)
    if mistake == "wrong sign":  # eq. 7 is linear: with x_t = 0 only its first term is left
        of_x_0, _ = q_x_s_given_x_t_x_0(schedule, 0 * x, x_0, t, s)
        mean = 2 * of_x_0 - mean
    if mistake == "no noise":
        var = 0 * var
    if (mistake == "beta for beta_tilde" and s > 0) or (mistake == "noise at the end" and s == 0):
        var = schedule.beta_t_given_s(t, s)
    return mean + var**0.5 * noise


MISTAKES = ("none", "wrong sign", "no noise", "noise at the end", "constant beta", "beta for beta_tilde")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_step_of_the_page_is_that_of_the_package_but_for_its_mistake(page, rng, mistake):
    """From t to s, the last step included; without a mistake it is ddpm_step, with beta its other variance."""
    assert page.execute_script("return Object.keys(MISTAKES)") == list(MISTAKES)
    x, eps, noise = rng.standard_normal((3, 5, 2))
    for t, s in ((1000, 800), (500, 499), (2, 1), (200, 0), (1, 0)):
        arguments = [a.ravel().tolist() for a in (x, eps)] + [t, s, noise.ravel().tolist(), mistake]
        made = page.execute_script("return ddpmStep(scheduleOf('linear'), ...arguments)", *arguments)
        expected = by_hand(mistake, SCHEDULE, x, eps, t, s, noise)
        np.testing.assert_allclose(np.reshape(made, (5, 2)), expected, rtol=1e-5, atol=1e-5)
        if mistake in ("none", "constant beta", "beta for beta_tilde"):
            variance = Schedule.beta_t_given_s if mistake == "beta for beta_tilde" else Schedule.beta_tilde
            right, _ = ddpm_step(SCHEDULE, x, eps, t, s, noise, variance=variance)
            np.testing.assert_allclose(expected, right, atol=1e-9)


@pytest.mark.parametrize("steps", [5, 7])
def test_a_run_of_the_plane_is_its_steps(page, steps):
    """The times of timestep_pairs; from the first normal numbers of its seed each step has the next ones."""
    way = {"scale": 4, "steps": steps, "mistake": "none", "seed": 9, "num": 6}
    path, times, noises = page.execute_script(
        """
        const [way] = arguments;
        const run = runPlane(scheduleOf("linear"), PLANES["eight Gaussians"], way);
        const draw = normals(way.seed);
        return [run.path.map((x) => [...x]), run.times, run.path.map(() => [...draw(2 * way.num)])];
        """,
        way,
    )
    pairs, model = list(timestep_pairs(1000, steps)), ideal.plane_model(SCHEDULE)
    assert times == [1000, *(s for _, s in pairs)] and path[0] == noises[0]
    x = np.reshape(path[0], (6, 2))
    for (t, s), noise, after in zip(pairs, noises[1:], path[1:], strict=True):
        x, _ = ddpm_step(SCHEDULE, x, classifier_free(model, 0, 4.0)(x, t), t, s, np.reshape(noise, (6, 2)))
        np.testing.assert_allclose(np.reshape(after, (6, 2)), x, rtol=1e-3, atol=1e-3)  # errors of 1e-5 grow in a chain


def test_the_figures_of_the_plane(page, rng):
    """Known on paper: four points around each of two centres; radius, width of a cloud, and who is within 2 std."""
    around = np.array([[0.3, 0], [-0.3, 0], [0, 0.5], [0, -0.5]])
    points = np.concatenate([around + [2, 0], around - [2, 0]])
    figures = page.execute_script(
        "return planeFigures(arguments[0], [[2, 0], [-2, 0]], 0.04)", points.ravel().tolist()
    )  # the std is 0.2: four of eight are within 0.4
    assert figures["near"] == 0.5
    assert figures["width"] == pytest.approx(((2 * 0.09 + 2 * 0.25) / 4 / 2) ** 0.5)
    assert figures["radius"] == pytest.approx(np.hypot(*points.T).mean())


def test_the_plane_shows_the_figures_of_its_own_points(page):
    """Of the run that is chosen: its data, steps, scale and mistake; constant beta has a schedule of its own."""
    fieldsets = page.find_elements("css selector", "#live fieldset")
    for choice, what in ((0, "two moons"), (1, "10"), (2, "2"), (3, "constant beta"), (3, "wrong sign"), (1, "250")):
        for label in fieldsets[choice].find_elements("css selector", "label"):
            if label.text == what:
                page.execute_script("arguments[0].click()", label)
        chosen = [f.find_element("css selector", "input:checked").get_attribute("value") for f in fieldsets]
        figures = page.execute_script(
            """
            const [name, steps, scale, mistake] = arguments;
            const constant = makeSchedule(new Array(1000).fill(0.001));
            const schedule = mistake === "constant beta" ? constant : scheduleOf("linear");
            const way = { scale: Number(scale), steps: Number(steps), mistake, seed: 0 };
            const { path } = runPlane(schedule, PLANES[name], way);
            const { radius, width, near } = planeFigures(path.at(-1), PLANES[name].centres, PLANES[name].variance);
            return [number(radius), number(width), `${Math.round(100 * near)}%`];
            """,
            *chosen,
        )
        assert [dd.text for dd in page.find_elements("css selector", "#live-readout dd")] == figures
        note = page.find_element("css selector", "#live-note").text
        assert note == page.execute_script(
            "return typeset(MISTAKES[arguments[0]]).map((n) => n.textContent ?? n).join('')", chosen[3]
        )


def test_mistakes_cost_what_the_page_says(page):
    """In the middle after few steps without noise, after many with a wrong sign; more noise at the end of few steps."""
    figures = page.execute_script("""
      const figuresOf = (mistake, steps) => {
        const { centres, variance } = PLANES["eight Gaussians"];
        const run = runPlane(scheduleOf("linear"), PLANES["eight Gaussians"], { scale: 0, steps, mistake, seed: 0 });
        return planeFigures(run.path.at(-1), centres, variance);
      };
      return Object.fromEntries(Object.keys(MISTAKES).map((name) => [name, [5, 250].map((n) => figuresOf(name, n))]));
    """)
    few, many = ({name: pair[i] for name, pair in figures.items()} for i in (0, 1))
    assert few["no noise"]["radius"] < 0.2 and many["wrong sign"]["radius"] < 0.2
    assert many["no noise"]["width"] < 0.6 * many["none"]["width"]
    assert few["noise at the end"]["width"] > 1.3 * few["none"]["width"]
    assert abs(many["noise at the end"]["width"] / many["none"]["width"] - 1) < 0.02
    for two in ("radius", "width"):
        differ = [abs(at["beta for beta_tilde"][two] - at["none"][two]) for at in (few, many)]
        assert differ[1] < 0.03
    assert few["none"]["near"] < 0.85 < many["none"]["near"]  # within 2 std: 86% of a cloud, and of its neighbours
    assert abs(many["none"]["radius"] - (ideal.RADIUS**2 + ideal.STD**2 / 2) ** 0.5) < 0.1

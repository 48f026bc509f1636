"""The explorer's page in a real browser: what can be moved moves, what can be solved can be failed, all can be read.

In a headless Chromium, driven by Selenium.  The page is made in its smallest form.
"""

import itertools
import math
import re

import pytest
from chromium import settled, show

pytestmark = [pytest.mark.program, pytest.mark.browser]

webdriver = pytest.importorskip("selenium.webdriver", reason='no selenium: pip install -e ".[browser]"')
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

REVERSE = ["x-t", "eps-hat", "x-0-hat", "x-0-mean"]
# What all canvases within an element show, as text.
PAINTED = "return [...arguments[0].querySelectorAll('canvas')].map((c) => c.toDataURL()).join()"


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def one(driver, selector):
    (element,) = all_of(driver, selector)
    return element


def painted(driver, element):
    settled(driver)
    return driver.execute_script(PAINTED, element)


def click(driver, element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def text_of(driver, selector):
    return one(driver, selector).text


# ------------------------------------------------------------------------------------------------ what can be moved


def test_every_slider_moves_its_pictures(page):
    """By the keyboard, from end to end: each canvas of a stage, and what is said, differs at the two ends."""
    sliders = all_of(page, "section:not(#training) input[type=range]")
    shown = (["chain", "jump"], REVERSE, ["plane"], ["live-plane"])
    for slider, canvases in zip(sliders, shown, strict=True):
        seen = []
        for key in (Keys.HOME, Keys.END):
            slider.send_keys(key)
            settled(page)
            pictures = [page.execute_script("return byId(arguments[0]).toDataURL()", name) for name in canvases]
            labels = [one(page, f"#{name}").get_attribute("aria-label") for name in canvases]
            seen.append([*pictures, *labels, slider.get_attribute("aria-valuetext")])
        assert all(a != b for a, b in zip(*seen)), canvases


def test_the_samples_and_the_mark_move_with_the_step(page):
    """Each moment has its picture, its loss, and the mark at its step; without a training there is no panel."""
    slider, seen = one(page, "#training input"), []
    curves = page.execute_script("return data.training")
    for k, (step, picture) in enumerate(curves["samples"]):
        page.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, k
        )
        window = next(i for i, end in enumerate(curves["steps"]) if end >= step)
        loss = curves["loss"]["all t"][window]
        assert one(page, "#samples").get_attribute("src").endswith(picture)
        text = text_of(page, "#training-time output")
        assert text.startswith(f"after {step:,} of {curves['steps'][-1]:,} steps") and float(
            text.split()[-1]
        ) == pytest.approx(loss, rel=0.005)
        x, y = (float(one(page, "#loss circle").get_attribute(name)) for name in ("cx", "cy"))
        assert x == pytest.approx(30 + curves["steps"][window] / curves["steps"][-1] * 206, abs=0.1)
        assert y == pytest.approx(28 - math.log10(loss) / 4 * 122, abs=0.3)
        seen.append((x, y))
    assert len(set(seen)) == len(curves["samples"]) >= 3
    assert page.execute_script("""
      byId("training").hidden = true;
      data.training = null;
      startTraining();
      return byId("training").hidden && document.querySelectorAll("#training svg").length === 1;
    """)


def test_the_mark_on_the_curves_moves_with_t(page):
    """To the right end and onto the chosen curve: at t = T little is left of alpha_bar."""
    slider = one(page, "#forward input[type=range]")
    dots = all_of(page, "#forward circle")
    places = []
    for key in (Keys.HOME, Keys.END):
        slider.send_keys(key)
        places.append([(float(dot.get_attribute("cx")), float(dot.get_attribute("cy"))) for dot in dots])
    for (x_0, y_0), (x_T, y_T) in zip(*places):
        assert x_T > x_0 + 100 and y_T > y_0 + 50
    assert text_of(page, "#chain-steps") == "1000 small steps"


def test_a_symbol_lights_what_it_stands_for(page):
    """Each of both equations, by the pointer and by Tab; nothing else is lit, and all goes out again."""
    symbols = all_of(page, "[data-lights]")
    wanted = {
        "forward": ["#jump, #forward-time", "#alpha-bar", "#forward-controls fieldset:first-of-type",
                    "#alpha-bar, #log-snr", "#forward-noise"],
        "reverse": ["#x-0-hat", "#x-t", "#eps-hat", "#reverse-time, #reverse-why"],
    }  # fmt: skip
    for section, targets in wanted.items():
        assert [s.get_attribute("data-lights") for s in all_of(page, f"#{section} [data-lights]")] == targets
    ways = ("pointerenter", "pointerleave"), ("focus", "blur")
    for symbol in symbols:
        targets = all_of(page, symbol.get_attribute("data-lights"))
        assert len(targets) == 1 + symbol.get_attribute("data-lights").count(",")
        for on, off in ways:
            page.execute_script("arguments[0].dispatchEvent(new Event(arguments[1]))", symbol, on)
            assert set(all_of(page, ".lit")) == set(targets)
            page.execute_script("arguments[0].dispatchEvent(new Event(arguments[1]))", symbol, off)
            assert all_of(page, ".lit") == []
    webdriver.ActionChains(page).move_to_element(symbols[1]).perform()
    assert [lit.get_attribute("id") for lit in all_of(page, ".lit")] == ["alpha-bar"]


def test_a_picture_of_ones_own_is_noised(page):
    """Drawn with the pointer and with the keys, it is what the chain begins with; cleared, the pad is black again."""
    click(page, all_of(page, "#forward fieldset:first-of-type label")[-1])
    pad, slider = one(page, "#pad"), one(page, "#forward input[type=range]")
    pixels = lambda name: page.execute_script("return byId(arguments[0]).toDataURL()", name)  # noqa: E731
    slider.send_keys(Keys.HOME)
    empty = pixels("chain")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    webdriver.ActionChains(page).move_to_element_with_offset(pad, -40, 0).click_and_hold().move_by_offset(
        80, 0
    ).release().perform()
    ink = page.execute_script("""
      const ink = [...byId("chain").getContext("2d", { willReadFrequently: true }).getImageData(0, 0, 28, 28).data];
      return ink.filter((_, i) => i % 4 === 0);
    """)  # fmt: skip
    rows = [sum(ink[28 * row : 28 * row + 28]) for row in range(28)]
    assert rows.index(max(rows)) in (13, 14) and sum(map(bool, rows)) <= 5  # a line across the middle
    assert (
        7 <= sum(value == 255 for value in ink[28 * 14 : 28 * 15]) <= 16 and pixels("chain") == pixels("jump") != empty
    )
    drawn = pixels("chain")
    pad.send_keys(Keys.ARROW_UP * 6, " ")
    slider.send_keys(Keys.HOME)
    assert pixels("chain") != drawn
    slider.send_keys(Keys.END)
    assert pixels("chain") != drawn and "your picture at t = 1000" in one(page, "#chain").get_attribute("aria-label")
    slider.send_keys(Keys.HOME)
    click(page, one(page, "#pad-clear"))
    assert pixels("chain") == empty
    click(page, all_of(page, "#forward fieldset:first-of-type label")[0])
    assert not pad.is_displayed()


def test_a_point_of_choice_is_followed_and_data_are_placed(page):
    """A click follows the nearest point; with data of one's own it places some, and the points go there too."""
    plane = one(page, "#live-plane")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
    before = painted(page, one(page, "#live"))
    click(page, one(page, "#live-point"))
    assert painted(page, one(page, "#live")) != before
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
    webdriver.ActionChains(page).move_to_element_with_offset(plane, 60, -60).click().perform()
    assert painted(page, one(page, "#live")) != before and not one(page, "#live-add").is_displayed()
    click(page, all_of(page, "#live fieldset:first-of-type label")[2])
    count = lambda: page.execute_script("return PLANES['your own'].centres")  # noqa: E731
    assert len(count()) == 3 and one(page, "#live-add").is_displayed()
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
    size, figures = plane.size["width"], text_of(page, "#live-readout")
    webdriver.ActionChains(page).move_to_element_with_offset(plane, size // 4, -size // 8).click().perform()
    (x, y), number = count()[-1], len(count())
    assert number == 4 and abs(x - 2) < 0.1 and abs(y - 1) < 0.1  # the plane goes from -4 to 4, and up is up
    assert text_of(page, "#live-readout") != figures
    figure = lambda: text_of(page, "#live-readout div:last-child dd")  # noqa: E731
    assert int(figure().rstrip("%")) > 70
    click(page, one(page, "#live-add"))
    assert len(count()) == 5
    click(page, one(page, "#live-clear"))
    assert len(count()) == 1
    before = painted(page, one(page, "#live"))
    click(page, one(page, "#live-noise"))
    assert painted(page, one(page, "#live")) != before


@pytest.mark.parametrize("section", ["forward", "reverse", "points", "live", "order"])
def test_every_option_changes_the_picture(page, section):
    """Within each choice no two options show the same; they are taken by a click, as a finger would."""
    where = one(page, f"#{section}")
    if section != "order":
        share = 1 if section == "live" else 0.6  # some mistakes are made in the last step
        middle = f"const s = arguments[0]; s.value = Math.round(s.max * {share}); s.dispatchEvent(new Event('input'))"
        page.execute_script(middle, where.find_element("css selector", "input[type=range]"))
    for choice in where.find_elements("css selector", "fieldset"):
        seen = []
        for label in choice.find_elements("css selector", "label"):
            click(page, label)
            if section in ("points", "live"):
                page.execute_script(middle, where.find_element("css selector", "input[type=range]"))
            seen.append(painted(page, where))
        assert len(seen) >= 2 and len(set(seen)) == len(seen), choice.text


def test_at_the_end_the_whole_is_the_picture(page):
    """At t = 0 x_t and x_0_hat are one, and eps_hat is flat; before that all four differ.  So does what is said."""
    slider = one(page, "#reverse input[type=range]")
    get = "return arguments[0].map((id) => byId(id).toDataURL())"
    slider.send_keys(Keys.HOME)
    settled(page)
    assert len(set(page.execute_script(get, REVERSE))) == 4
    root, count = page.execute_script("""
      const run = runOf("ddpm", data.reverse.steps.at(-1), 3);
      return [Math.sqrt(run.alpha_bar[0]), counted(run.counts[0][0])];
    """)
    assert f"= {root:.3g} in" in text_of(page, "#reverse-why") and "blur" in text_of(page, "#reverse-why")
    of = page.execute_script("return counted(data.reverse.known[1][0])")
    assert text_of(page, "#x-0-count") == f"{count} of {of}"
    assert page.execute_script("return [4958.4, 11.4, 4.84, 1].map(counted)") == ["4,958", "11", "4.8", "1.0"]
    slider.send_keys(Keys.END)
    settled(page)
    x_t, eps_hat, x_0_hat, mean = page.execute_script(get, REVERSE)
    assert x_t == x_0_hat != eps_hat and mean != x_0_hat and text_of(page, "#x-0-count").startswith("1.0 of")
    assert "nearest training picture" in text_of(page, "#reverse-why")
    flat = "return new Set(byId('eps-hat').getContext('2d').getImageData(0, 0, WIDTH, HEIGHT).data).size"
    assert page.execute_script(flat) == 2  # one grey, and no transparency


def test_points_are_drawn_where_they_are(page):
    """Up is up: what is painted spans just what the particles span, and without arrows nothing else is there."""
    click(page, all_of(page, "#points fieldset:nth-of-type(2) label")[0])
    spans = page.execute_script("""
      const path = unpacked(data.points.sets.moons.forward).slice(0, 2 * data.points.num);
      const side = byId("plane").width;
      const at = (value) => ((value / data.points.view + 1) / 2) * side;
      const xs = [...path].filter((_, i) => i % 2 === 0).map(at);
      const ys = [...path].filter((_, i) => i % 2 === 1).map((y) => at(-y));
      const painted = byId("plane").getContext("2d").getImageData(0, 0, side, side).data;
      const [left, top] = [[], []];
      for (let i = 0; i < side * side; i++) {
        if (painted[4 * i + 3] > 128) {
          left.push(i % side);
          top.push(Math.floor(i / side));
        }
      }
      const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [1e9, -1e9]);
      return [[...span(xs), ...span(ys)], [...span(left), ...span(top)]];
    """)
    assert all(abs(abs(a - b) - 6) <= 1.5 for a, b in zip(*spans))  # 6 is a dot's radius


def test_at_scale_0_the_digit_makes_no_difference(page):
    """And the page says so."""
    scales, digits = (all_of(page, f"#reverse fieldset:nth-of-type({n}) label") for n in (4, 1))
    click(page, scales[0])
    before = painted(page, one(page, "#reverse"))
    click(page, digits[1])
    assert painted(page, one(page, "#reverse")) == before
    assert "makes no difference" in text_of(page, "#reverse-note")


# Frames come as ever, but the page's clock stands still: a slow machine sees what a fast one sees.
HELD_CLOCK = """
window.heldTime = 0;
performance.now = () => heldTime;
const nextFrame = requestAnimationFrame;
window.requestAnimationFrame = (callback) => nextFrame(() => callback(heldTime));
"""


def pass_time(page, ms):
    """Move the held clock on, and wait for the frame that shows it."""
    page.execute_script("heldTime += arguments[0]", ms)
    settled(page)


def position(slider):
    return int(slider.get_property("value"))


def last_of(slider):
    return int(slider.get_attribute("max"))


def test_points_play_pause_and_scrub(page):
    """Play moves on by itself, pause holds, the slider goes anywhere, and at the end play stops and begins again."""
    button, slider = one(page, "#points-time button"), one(page, "#points-time input")
    page.execute_script(HELD_CLOCK)
    slider.send_keys(Keys.HOME)
    begin = painted(page, one(page, "#points"))
    click(page, button)
    pass_time(page, 3 * 30)
    assert position(slider) == 3 and button.text == "Pause" and painted(page, one(page, "#points")) != begin
    click(page, button)
    assert button.text == "Play"
    pass_time(page, 3 * 30)
    assert position(slider) == 3
    slider.send_keys(Keys.HOME)
    assert position(slider) == 0 and painted(page, one(page, "#points")) == begin
    slider.send_keys(Keys.END)
    assert position(slider) == last_of(slider) and text_of(page, "#points-time output") == "t = 0"
    slider.send_keys(Keys.ARROW_LEFT)
    click(page, button)
    pass_time(page, 30)
    assert position(slider) == last_of(slider) and button.text == "Play"
    click(page, button)
    pass_time(page, 2 * 30)
    assert position(slider) == 2 and button.text == "Pause"
    slider.send_keys(Keys.HOME)
    assert position(slider) == 0 and button.text == "Play"  # to scrub is to pause


def press_thumb(page, slider):
    """The mouse goes down on the thumb, in its middle, and stays down."""
    half = 8  # a thumb is 16 pixels wide
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    share = position(slider) / last_of(slider)
    x = round((share - 0.5) * (slider.size["width"] - 2 * half))  # from the slider's middle
    webdriver.ActionChains(page).move_to_element_with_offset(slider, x, 0).click_and_hold().perform()


@pytest.mark.parametrize("section", ["forward", "reverse", "points"])
def test_a_touch_pauses_also_where_nothing_moves(page, section):
    """A touch that leaves the slider where it stands is one too, though the browser then tells of no new value."""
    button, slider = one(page, f"#{section}-time button"), one(page, f"#{section}-time input")
    page.execute_script(HELD_CLOCK)
    page.execute_script("arguments[0].addEventListener('input', () => (window.toldOfValue = true))", slider)

    def play_from_the_end():
        slider.send_keys(Keys.END)
        click(page, button)
        assert position(slider) == 0 and button.text == "Pause"
        page.execute_script("window.toldOfValue = false")

    def assert_paused(at):
        assert not page.execute_script("return toldOfValue")  # else "input" alone would have paused
        assert position(slider) == at and button.text == "Play"
        pass_time(page, 60_000)
        assert position(slider) == at

    for key in (Keys.HOME, Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.PAGE_DOWN):
        play_from_the_end()
        slider.send_keys(key)
        assert_paused(0)
    for moments in (0, 1):
        play_from_the_end()
        pass_time(page, moments * {"forward": 5, "reverse": 250, "points": 30}[section])
        press_thumb(page, slider)
        assert_paused(moments)
        webdriver.ActionChains(page).release().perform()
    play_from_the_end()
    slider.send_keys(Keys.TAB)
    assert button.text == "Pause"  # to walk past is not to touch


@pytest.mark.parametrize("section", ["forward", "reverse", "points", "live"])
def test_paused_before_the_first_frame_it_shows_the_begin(page, section):
    """Play that begins again goes to 0 at once, and what is shown and said goes with it."""
    slider = one(page, f"#{section}-time input")
    shown = lambda: [painted(page, one(page, f"#{section}")), text_of(page, f"#{section}-time output")]  # noqa: E731
    slider.send_keys(Keys.HOME)
    begin = shown()
    slider.send_keys(Keys.END)
    assert shown() != begin
    page.execute_script("arguments[0].click(); arguments[0].click()", one(page, f"#{section}-time button"))
    assert position(slider) == 0 and shown() == begin


def test_play_goes_on_from_the_share_at_which_another_run_is_chosen(page):
    """The slider moves to the same share of the new run.  From there play counts on, and no time is lost or gained."""
    last = page.execute_script("return data.reverse.steps.map((n) => runOf('ddpm', n, 3).times.length - 1)")
    few, many = 1, len(last) - 1  # two steps are twice as long as half a run
    assert last[few] == 2 and last[many] % 2 == 0
    button, slider = one(page, "#reverse-time button"), one(page, "#reverse-time input")
    digits, steps = (all_of(page, f"#reverse fieldset:nth-of-type({n}) label") for n in (1, 3))
    page.execute_script(HELD_CLOCK)

    def assert_plays(at, last):
        for _ in range(2):  # at once, and in the frames after that
            assert (position(slider), last_of(slider), button.text) == (at, last, "Pause")
            settled(page)

    ways = ((many, last[many], few, 2), (few, 2, many, last[many]))
    for (first, old_last, second, new_last), digit in zip(ways, (1, 0)):
        click(page, steps[first])
        slider.send_keys(Keys.HOME)
        click(page, button)
        pass_time(page, 250 * old_last // 2 + 100)
        assert_plays(old_last // 2, old_last)
        click(page, digits[digit])
        assert_plays(old_last // 2, old_last)
        click(page, steps[second])
        assert_plays(new_last // 2, new_last)
        pass_time(page, 149)
        assert_plays(new_last // 2, new_last)
        pass_time(page, 1)
        assert position(slider) == new_last // 2 + 1
        pass_time(page, 250 * (new_last // 2 - 1))
        assert position(slider) == new_last and button.text == "Play"


# ------------------------------------------------------------------------------------------------ what can be solved

# Which place of its run each frame has, found by its pixels alone: all runs that may be asked are shown again.
COLUMNS = """
const [process, done] = arguments;
const frames = [...document.querySelectorAll("#order-frames canvas")].map((c) => c.toDataURL());
(async () => {
  for (const make of process === "forward" ? forwardRuns() : reverseRuns()) {
    const run = make();
    const shown = [];
    for (const column of spread(run.alphaBar, FRAMES)) {
      const canvas = document.createElement("canvas");
      await run.show(canvas, column, "");
      shown.push(canvas.toDataURL());
    }
    const found = frames.map((frame) => shown.indexOf(frame));
    if (!found.includes(-1)) return done(found);
  }
  done(null);
})();
"""


@pytest.mark.parametrize("process", ["forward", "reverse"])
def test_the_frames_can_be_put_in_order_and_not(page, process):
    """Reversed they are refused, and each one that is out of place is marked; in order they are right."""
    click(page, all_of(page, "#order label")[process == "reverse"])
    for _ in range(4):  # whatever the shuffle
        click(page, one(page, "#order-new"))
        settled(page)
        frames, check = all_of(page, "#order-frames button"), one(page, "#order-check")
        columns = page.execute_async_script(COLUMNS, process)
        order = sorted(range(len(frames)), key=columns.__getitem__)
        assert len(frames) >= 3 and len(set(columns)) == len(frames) and order != list(range(len(frames)))
        assert not check.is_enabled()
        for i in order[::-1]:
            click(page, frames[i])
        check.click()
        assert "Not yet" in text_of(page, "#order-verdict")
        marked = [i for i, frame in enumerate(frames) if "wrong" in frame.get_attribute("class")]
        assert sorted(marked) == sorted(i for i, j in zip(order, order[::-1]) if i != j)
        for frame in frames:
            frame.click()  # taken back
        assert not check.is_enabled() and text_of(page, "#order-verdict") == ""
        for place, i in enumerate(order):
            frames[i].click()
            assert frames[i].get_attribute("aria-label").endswith(f"number {place + 1}")
        check.click()
        assert text_of(page, "#order-verdict").startswith("Right")


def test_a_frames_name_does_not_give_it_away(page):
    """Neither what is read aloud nor what is shown names t before the answer."""
    for canvas, button in zip(all_of(page, "#order-frames canvas"), all_of(page, "#order-frames button")):
        assert canvas.get_attribute("aria-label") == button.get_attribute("aria-label") == f"Frame {button.text}"


# The label that is asked for, found by the pixels that are shown first.
HIDDEN = """
const done = arguments[0];
(async () => {
  for (const item of data.riddles.items) {
    const canvas = document.createElement("canvas");
    await draw(canvas, item.sheet, 0, 0, "");
    if (canvas.toDataURL() === byId("riddle").toDataURL()) return done(item.label);
  }
})();
"""


def hidden(page):
    """The label of the riddle that has just begun, and the other labels."""
    settled(page)
    label = page.execute_async_script(HIDDEN)
    return label, [other for other in range(10) if other != label]


def test_a_riddle_is_not_solved_by_trying_all_names(page):
    """Three wrong answers end it; each takes noise away, and the third shows what was hidden."""
    answers, (label, others) = all_of(page, "#guess-answers button"), hidden(page)
    now = lambda: int(text_of(page, "#riddle-time").split()[2][:-1])  # noqa: E731
    times = [now()]
    for n, left in zip(others[:3], ("2 answers are left.", "One answer is left.", f"it was {label}. Missed.")):
        assert not one(page, "#guess-reveal").is_displayed()
        click(page, answers[n])
        times.append(now())
        verdict = one(page, "#guess-verdict")
        assert (
            verdict.text.startswith(f"Not {n}")
            and verdict.text.endswith(left)
            and verdict.get_attribute("class")[-3:] == "bad"
        )
    assert times[0] > times[1] > times[2] == times[3]
    assert one(page, "#guess-reveal").is_displayed() and not any(answer.is_enabled() for answer in answers)
    assert one(page, "#guess-history li").text == f"{label} missed" and not one(page, "#guess-less").is_enabled()
    one(page, "#guess-next").click()
    label, others = hidden(page)
    for n in others[:2]:
        click(page, answers[n])
    click(page, answers[label])  # the count begins anew, and the third answer may be right
    assert text_of(page, "#guess-verdict").startswith("Right")


def test_a_digit_can_be_guessed_and_missed(page):
    """A wrong guess says so, less noise is another picture, and the right one shows what was hidden."""
    answers, less, (label, (wrong, *_)) = all_of(page, "#guess-answers button"), one(page, "#guess-less"), hidden(page)
    assert [a.text for a in answers] == list("0123456789")
    before = painted(page, one(page, ".riddle > figure"))
    click(page, less)
    assert painted(page, one(page, ".riddle > figure")) != before
    reveal = one(page, "#guess-reveal")
    click(page, answers[wrong])
    assert f"Not {wrong}" in text_of(page, "#guess-verdict") and not answers[wrong].is_enabled()
    assert not reveal.is_displayed()
    click(page, answers[label])
    assert text_of(page, "#guess-verdict").startswith("Right") and reveal.is_displayed()
    assert one(page, "#guess-history li").text.endswith(", 1 wrong") and not less.is_enabled()
    shown = [canvas.get_attribute("aria-label") for canvas in all_of(page, "#guess-reveal canvas")]
    assert shown[0] == f"The picture: {label}" and "network" in shown[1] and "mean" in shown[2]
    assert len(set(painted(page, reveal).split("data:"))) == 4  # each its own picture
    click(page, one(page, "#guess-next"))
    assert all(answer.is_enabled() for answer in answers) and not reveal.is_displayed()


def test_noise_can_be_taken_away_until_little_is_left(page):
    """As often as there are moments, and t falls each time."""
    less, times = one(page, "#guess-less"), []
    while True:
        times.append(int(text_of(page, "#riddle-time").split()[2].rstrip(",")))
        if not less.is_enabled():
            break
        click(page, less)
    assert times == sorted(set(times), reverse=True) and times[-1] == 1


def choose(page, right):
    """Click on the right or on a wrong choice of the card that is shown; (its question, the text of the choice)."""
    question = text_of(page, "#card-question")
    find = "return data.cards.find((c) => typeset(c.question).map((n) => n.textContent ?? n).join('') === arguments[0])"
    card = page.execute_script(find, question)
    plain = "return typeset(arguments[0]).map((n) => n.textContent ?? n).join('')"
    right_text = page.execute_script(plain, card["right"])
    buttons = [b for b in all_of(page, "#card-choices button") if (b.text == right_text) == right]
    assert len(buttons) == (1 if right else len(card["wrong"]))
    text = buttons[0].text
    click(page, buttons[0])
    return question, text


def test_a_card_shows_its_answer_after_a_choice_and_not_before(page):
    """The choice is marked, and the right one; the buttons are gone, so one commits once; a wrong card comes again."""
    known, again, answer = (one(page, f"#card-{name}") for name in ("known", "again", "answer"))
    for right in (False, True):
        assert not answer.is_displayed() and not known.is_displayed() and not again.is_displayed()
        assert len(all_of(page, "#card-choices button")) == 3 and text_of(page, "#card-verdict") == ""
        _, chosen = choose(page, right)
        assert answer.is_displayed() and again.is_displayed() and known.is_displayed() == right
        assert text_of(page, "#card-verdict") == ("Right." if right else "Not this one.")
        marked = [p.text for p in all_of(page, "#card-choices p")]
        assert len(marked) == 3 and not all_of(page, "#card-choices button")
        assert [text for text in marked if text.startswith("✗")] == ([] if right else [f"✗ {chosen}"])
        assert [text for text in marked if text.startswith("✓")] == [one(page, "#card-choices .right").text]
        assert (f"✓ {chosen}" in marked) == right
        assert page.switch_to.active_element == (known if right else again)
        again.click()
        assert page.switch_to.active_element == all_of(page, "#card-choices button")[0]


def test_cards_come_back_until_they_are_known(page):
    """An answer names its place in the source; what is not known comes again, and in the end all are known."""
    known, again, begin = (one(page, f"#card-{name}") for name in ("known", "again", "show"))
    total = page.execute_script("return data.cards.length")
    first, _ = choose(page, right=False)
    assert ".py" in text_of(page, "#card-answer") and not begin.is_displayed()
    again.click()
    questions = []
    for n in range(total):
        assert text_of(page, "#card-count").startswith(f"{n} of {total}")
        questions.append(choose(page, right=True)[0])
        known.click()
    assert text_of(page, "#card-count").startswith(f"All {total}") and not all_of(page, "#card-choices *")
    assert questions[-1] == first and len(set(questions)) == total
    begin.click()
    assert text_of(page, "#card-count").startswith("0 of") and text_of(page, "#card-question")
    assert len(all_of(page, "#card-choices button")) == 3


# -------------------------------------------------------------------------------------------------- who can use it


def test_the_keyboard_reaches_everything(page):
    """Tab visits every link, button and slider that can be used, and one option of each choice; each shows a focus."""
    usable = "a[href], button:not(:disabled), input[type=range], [data-lights]"
    wanted = page.execute_script(
        "const usable = [...document.querySelectorAll(arguments[0])].filter((e) => e.getClientRects().length);"
        "return usable.length + document.querySelectorAll('fieldset').length",
        usable,
    )
    page.execute_script("document.body.tabIndex = -1; document.body.focus()")
    visited, outlines = [], []
    for _ in range(wanted + 5):
        page.switch_to.active_element.send_keys(Keys.TAB)
        element = page.switch_to.active_element
        if element.tag_name == "body" or element in visited:
            break
        visited.append(element)
        outlines.append(
            page.execute_script(
                "const e = arguments[0]; return getComputedStyle(e.type === 'radio' ? e.nextSibling : e).outlineStyle",
                element,
            )
        )
    assert len(visited) == wanted and set(outlines) == {"solid"}


def test_arrow_keys_choose(page):
    """Within a choice the arrows move on, and the picture follows."""
    first = all_of(page, "#forward input[type=radio]")[0]
    before = painted(page, one(page, "#forward"))
    first.send_keys(Keys.ARROW_RIGHT)
    assert not first.is_selected() and painted(page, one(page, "#forward")) != before


def test_everything_has_a_name(page):
    """Every picture says what it shows, every control what it does; headings come in order, one h1."""
    missing = page.execute_script("""
      const nameless = [...document.querySelectorAll("canvas, svg[role=img], math")]
        .filter((e) => !e.getAttribute("aria-label"));
      nameless.push(...[...document.querySelectorAll("canvas")]
        .filter((e) => e.getAttribute("role") !== (e.id === "pad" ? "application" : "img")));
      nameless.push(...[...document.images].filter((e) => !e.alt));
      nameless.push(...[...document.querySelectorAll("button, a")]
        .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label"))));
      nameless.push(...[...document.querySelectorAll("input")]
        .filter((e) => !(e.getAttribute("aria-label") || e.labels.length)));
      nameless.push(...[...document.querySelectorAll("legend")].filter((e) => !e.textContent));
      return nameless.map((e) => e.outerHTML);
    """)
    assert missing == []
    levels = [int(heading.tag_name[1]) for heading in all_of(page, "h1, h2, h3")]
    assert levels.count(1) == 1 and levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert one(page, "html").get_attribute("lang") == "en" and page.title
    twice = page.execute_script(
        "const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);"
        "return ids.filter((id, i) => ids.indexOf(id) !== i)"
    )
    assert twice == []


# The contrast of each text with what lies behind it, WCAG 2.2, as [ratio, text]; large text may have less.
MEASURE = """
const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const channels = (colour) => {
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data];
};
const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = channels(getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour;
  }
};
"""
CONTRASTS = """
const texts = [...document.querySelectorAll("body *")].filter(
  (e) => !["SCRIPT", "NOSCRIPT"].includes(e.tagName) && e.getClientRects().length && !e.closest(":disabled")
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
return texts.map((e) => {
  const style = getComputedStyle(e);
  const [a, b] = [luminance(channels(e instanceof SVGElement ? style.fill : style.color)), luminance(ground(e))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page, page_file, scheme):
    """4.5 to 1 or more everywhere, with verdicts and answers open, as the system's scheme and by the switch."""
    grounds = []
    for system, switched in ((scheme, False), ({"light": "dark", "dark": "light"}[scheme], True)):
        show(page, 1280, system)
        page.get(page_file.as_uri())
        settled(page)
        if switched:
            click(page, one(page, "#theme"))
        click(page, all_of(page, "#guess-answers button")[0])
        click(page, all_of(page, "#card-choices button")[0])
        for frame in all_of(page, "#order-frames button"):
            click(page, frame)
        one(page, "#order-check").click()
        contrasts = page.execute_script(MEASURE + CONTRASTS)
        assert len(contrasts) > 150
        assert [c for c in contrasts if c[0] < 4.5] == []
        grounds.append(one(page, "body").value_of_css_property("background-color"))
    assert grounds[0] == grounds[1]
    bright = sum(map(int, grounds[0].partition("(")[2].rstrip(")").split(",")[:3])) > 384
    assert bright == (scheme == "light")


LINES = """
  return [...document.querySelectorAll(".curve path, .curve .mark")].map((e) => {
    const [a, b] = [luminance(channels(getComputedStyle(e).stroke)), luminance(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
"""
# Of all pixels of the plane that a point or an arrow covers wholly: the least contrast with its ground.
PLANE = """
  const plane = byId(arguments[0]);
  const behind = luminance(channels(getComputedStyle(plane).backgroundColor));
  const { width, height } = plane;
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const readable = copy.getContext("2d", { willReadFrequently: true });
  readable.drawImage(plane, 0, 0);
  const all = readable.getImageData(0, 0, width, height).data;
  let least = 21;
  for (let i = 0; i < all.length; i += 4) {
    if (all[i + 3] < 255) continue;
    const own = luminance(all.slice(i, i + 3));
    least = Math.min(least, (Math.max(own, behind) + 0.05) / (Math.min(own, behind) + 0.05));
  }
  return least;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_points_stand_out(page, page_file, scheme):
    """3 to 1 or more: each curve and the mark on it, each point and arrow of the plane."""
    show(page, 1280, scheme)
    page.get(page_file.as_uri())
    settled(page)
    lines = page.execute_script(MEASURE + LINES)
    assert len(lines) == 18 and min(lines) >= 3  # five schedules and a mark, twice; the loss, its quarters and a mark
    for direction in all_of(page, "#points fieldset:nth-of-type(2) label"):
        click(page, direction)
        one(page, "#points input[type=range]").send_keys(Keys.END)
        assert 3 <= page.execute_script(MEASURE + PLANE, "plane") < 21
    assert 3 <= page.execute_script(MEASURE + PLANE, "live-plane") < 21


def test_each_curve_has_its_name(page):
    """Beside itself: five names for five curves, none over another, all within the drawing."""
    for plot in all_of(page, "#forward .curve svg"):
        names = plot.find_elements("css selector", ".name")
        assert sorted(name.text for name in names) == sorted(
            page.execute_script("return Object.keys(data.forward.schedules)")
        )
        whole, boxes = plot.rect, [name.rect for name in names]
        for box in boxes:
            assert whole["x"] <= box["x"] and box["x"] + box["width"] <= whole["x"] + whole["width"]
        for a, b in itertools.combinations(boxes, 2):
            apart = max(b["y"] - a["y"] - a["height"], a["y"] - b["y"] - b["height"])
            assert apart > -3  # the boxes of letters have room above and below
        chosen = [name for name in names if "chosen" in name.get_attribute("class")]
        assert [name.text for name in chosen] == ["linear"]


def test_every_reference_to_the_source_is_a_link_to_a_file(page, page_file):
    """Of the sections and of every card: files that exist, each name linked to the file that it stands beside."""
    root = page.execute_script("return data.root")
    markup = re.findall(r'<p class="source">(.*?)</p>', page_file.read_text("utf-8"), re.DOTALL)
    shown = [" ".join(line.text.split()) for line in all_of(page, ".source")]
    assert shown == [" ".join(re.sub(r"<[^>]*>", "", line).split()) for line in markup]  # links change no word
    for _ in range(page.execute_script("return data.cards.length")):
        choose(page, right=True)
        words = page.execute_script("""
          const words = [...document.querySelectorAll(".source code, #card-answer code")];
          return words.map((code) => [code.textContent, code.closest("a")?.getAttribute("href")]);
        """)
        assert len(words) > 12
        waiting = []
        for word, href in words:
            path = (page_file.parent / (href or "none")).resolve()
            waiting.append((word, path))
            if word.endswith(".py"):
                assert path.is_file() and path.as_posix().endswith(f"/{word}")
                assert {p for _, p in waiting} == {path} and href == f"{root}/{word}"
                assert all(w == word or w.split(".")[-1] in path.read_text("utf-8") for w, _ in waiting)
                waiting = []
        assert waiting == []
        one(page, "#card-known").click()


def test_what_is_painted_follows_the_switch(page):
    """The points and their arrows are painted anew, in colours that stand out."""
    plane = "return byId('plane').toDataURL()"
    before = page.execute_script(plane)
    click(page, one(page, "#theme"))
    assert page.execute_script(plane) != before


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_it_fits_the_screen(page, page_file, width):
    """Nothing sticks out to the side, pictures are squares, and what a finger must hit is 24 pixels or more."""
    show(page, width, "light")
    page.get(page_file.as_uri())
    settled(page)
    click(page, all_of(page, "#forward fieldset:first-of-type label")[-1])  # the pad
    assert page.execute_script("const nav = document.querySelector('nav'); return nav.scrollWidth <= nav.clientWidth")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    for canvas in all_of(page, "main canvas:not(.reveal canvas)"):
        size = canvas.size
        assert abs(size["width"] - size["height"]) <= 1 and 30 < size["width"] <= width
        if canvas.get_attribute("id") not in ("plane", "live-plane"):
            assert canvas.value_of_css_property("image-rendering") == "pixelated"
    small = [
        e.text for e in all_of(page, "button, nav a, .options label") if e.is_displayed() and min(e.size.values()) < 24
    ]
    assert small == []


def test_nothing_is_asked_of_the_network(page):
    """The browser has loaded one file: this one."""
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_markup_of_a_name_stays_text(page):
    """A class named like an element is a word on a button."""
    page.execute_script("byId('guess-history').append(element('li', {}, '<b id=injected>bold</b>'))")
    assert all_of(page, "#injected") == [] and "<b id=injected>" in one(page, "#guess-history").text


def test_names_are_set_as_symbols(page):
    """With their hats, bars and indices; what only looks like one stays a word."""
    set_as = page.execute_script("""
      const host = element("p", {}, ...typeset("sqrt(alpha_bar_T) x_0_hat - eps_c, beta_tilde of alphabet"));
      return host.innerHTML;
    """)
    symbols = [
        '√(<span class="symbol"><var>α\u0304</var><sub><var>T</var></sub></span>)',
        '<span class="symbol"><var>x\u0302</var><sub>0</sub></span> −',
        '<span class="symbol"><var>ε</var><sub><var>c</var></sub></span>,',
        "<var>β\u0303</var> of alphabet",
    ]
    assert set_as == " ".join(symbols)
    assert "_" not in text_of(page, "#mistake-pairs")

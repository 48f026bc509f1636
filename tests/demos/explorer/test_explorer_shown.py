"""What the page shows is what it has: each tile its own picture, each name its own curve, each point its own place."""

import numpy as np
import pytest

pytestmark = [pytest.mark.program, pytest.mark.browser]


def choose(page, section, number, place):
    """Choose an option of a choice of a section, both by their numbers, which begin with 0."""
    page.execute_script(
        """
        const [section, number, place] = arguments;
        document.querySelectorAll(`#${section} fieldset`)[number].querySelectorAll("input")[place].click();
        """,
        section, number, place,
    )  # fmt: skip


def move(page, section, place):
    """Move the slider of a section."""
    page.execute_script(
        """
        const slider = document.querySelector(`#${arguments[0]} input[type=range]`);
        slider.value = arguments[1];
        slider.dispatchEvent(new Event("input"));
        """,
        section, place,
    )  # fmt: skip


# Whether the canvases, by id or as an element, show these columns and rows of these sheets: the names that do not.
SHOWS = """
const done = arguments[1];
(async () => {
  const wrong = [];
  for (const [selector, sheet, column, row] of arguments[0]) {
    const canvas = document.createElement("canvas");
    await draw(canvas, sheet, column, row, "");
    await Promise.all(pictures.values());
    if (document.querySelector(selector).toDataURL() !== canvas.toDataURL()) wrong.push(selector);
  }
  done(wrong);
})();
"""


@pytest.mark.parametrize(("sampler", "steps", "scale", "digit"), [(0, 5, 2, 1), (1, 3, 1, 2), (2, 4, 0, 3)])
def test_each_tile_of_the_reverse_process_is_its_own(page, sampler, steps, scale, digit):
    """x_t, eps_hat, x_0_hat and the mean at the moment; the ends by steps, and the three ends of one start."""
    for number, place in enumerate((digit, sampler, steps, scale)):
        choose(page, "reverse", number, place)
    reverse = page.execute_script("return data.reverse")
    name = lambda n: f"{reverse['samplers'][sampler]} {n} {reverse['scales'][scale]}"  # noqa: E731
    run, row = reverse["runs"][name(reverse["steps"][steps])], digit if scale else 0
    for moment in (0, 2, len(run["times"]) - 1):
        move(page, "reverse", moment)
        wanted = [
            (f"#{tile}", run["sheets"][row], moment, i)
            for i, tile in enumerate(("x-t", "eps-hat", "x-0-hat", "x-0-mean"))
        ]
        for i, n in enumerate(reverse["steps"]):
            other = reverse["runs"][name(n)]
            last = len(other["times"]) - 1
            wanted.append((f"#reverse-ends figure:nth-child({i + 1}) canvas", other["sheets"][row], last, 0))
        wanted += [(f"#reverse-ways canvas:nth-child({way + 1})", run["ends"], row, way) for way in range(3)]
        assert page.execute_async_script(SHOWS, wanted) == []
        all_known, each = reverse["known"]
        counts = page.execute_script(
            "return [arguments[0], arguments[1]].map(counted)",
            run["counts"][row][moment],
            each[digit] if scale else all_known,
        )
        assert page.find_element("css selector", "#x-0-count").text == " of ".join(counts)
        t = run["times"][moment]
        why = page.find_element("css selector", "#reverse-why").text
        assert (f"= {run['alpha_bar'][moment] ** 0.5:.3g} in" in why) == (t > 0)


def test_what_the_network_saw_stands_beside_the_mean_in_a_riddle(page):
    """The picture, x_0_hat and the exact mean, all of the hidden picture and of the noise that is left."""
    for _ in range(3):
        page.execute_script("[...document.querySelectorAll('#guess-answers button:not(:disabled)')][0].click()")
        if page.execute_script("return !byId('guess-reveal').hidden"):
            break
    label = int(page.find_element("css selector", "#riddle-answer").get_attribute("aria-label").split()[-1])
    t = int(page.find_element("css selector", "#riddle-time").text.split()[2].rstrip(","))
    riddles = page.execute_script("return data.riddles")
    item, k = riddles["items"][label], riddles["times"].index(t)
    wanted = [("#riddle", 0), ("#riddle-seen", 1), ("#riddle-mean", 2)]
    tiles = [(tile, item["sheet"], k, row) for tile, row in wanted] + [("#riddle-answer", item["answer"], 0, 0)]
    assert page.execute_async_script(SHOWS, tiles) == []


def test_a_name_stands_on_its_own_curve(page):
    """Within some pixels of the curve that has its colour when it is chosen."""
    for number, name in enumerate(page.execute_script("return Object.keys(data.forward.schedules)")):
        choose(page, "forward", 1, number)
        near = page.execute_script("""
          return [...document.querySelectorAll("#forward .curve svg")].map((plot) => {
            const [label, path] = [plot.querySelector(".name.chosen"), plot.querySelector("path.chosen")];
            const end = label.getAttribute("text-anchor") === "end";
            const [x, y] = [Number(label.getAttribute("x")) + (end ? 4 : -4), Number(label.getAttribute("y")) - 4];
            const length = path.getTotalLength();
            const places = Array.from({ length: 2001 }, (_, i) => path.getPointAtLength((i / 2000) * length));
            return [label.textContent, Math.min(...places.map((p) => Math.hypot(p.x - x, p.y - y)))];
          });
        """)
        assert [label for label, _ in near] == [name] * 2 and max(distance for _, distance in near) < 6


def test_what_is_right_is_not_shown_as_wrong(page):
    """Beside the right pictures stand those of a mistake, or of another choice that is right, under that name."""
    shown = page.execute_script("""
      return [...document.querySelectorAll("#mistake-pairs article")].map((row) =>
        [...row.querySelectorAll("figure")].map((f) => [f.querySelector("figcaption").textContent, f.className]));
    """)
    rows = page.execute_script("return data.mistakes.rows")
    assert len(rows) == len(shown) == 9 and {row["kind"] for row in rows} == {"wrong", "also right"}
    for row, figures in zip(rows, shown):
        kind = "wrong" if row["kind"] == "wrong" else "right"
        assert figures == [["right", "right"], [row["kind"], kind]]
        assert ("Not a mistake" in row["why"]) == (kind == "right")
    sources = page.execute_script("return [...document.querySelectorAll('#mistake-pairs img')].map((i) => i.src)")
    assert [source.split(",")[1] for source in sources] == [row[way] for row in rows for way in ("right", "other")]


# Notes the circles that are drawn: [x, y, radius, the width of the line], and the ends of the lines of a trail.
RECORD = """
window.circles = [];
window.lines = [];
const proto = CanvasRenderingContext2D.prototype;
const [arc, lineTo] = [proto.arc, proto.lineTo];
proto.arc = function (x, y, radius, ...rest) {
  if (this.canvas.id === "live-plane") circles.push([x, y, radius, this.lineWidth]);
  return arc.call(this, x, y, radius, ...rest);
};
proto.lineTo = function (x, y) {
  if (this.canvas.id === "live-plane") lines.push([x, y]);
  return lineTo.call(this, x, y);
};
"""


def drawn(page, moment):
    """The circles and the lines of the plane at a moment."""
    page.execute_script("circles.length = lines.length = 0")
    move(page, "live", moment)
    circles, lines = page.execute_script("return [circles, lines]")
    return np.array(circles), np.array(lines)


def on_canvas(points):
    """Places of the plane, -4..4, as pixels of 0..1024; y goes up."""
    x, y = np.asarray(points, float).reshape(-1, 2).T
    return np.stack([(x + 4) * 128, (4 - y) * 128], 1)


def test_the_plane_shows_its_points_rings_and_trail(page):
    """At the start, half a step on and at the end: each point in its place, a ring of 2 std about each centre, thick
    where the label asks for it; the trail is the way of the followed point, with a ring where it is."""
    page.execute_script(RECORD)
    choose(page, "live", 1, 0)
    choose(page, "live", 2, 3)
    path, times, plane = page.execute_script("""
      const plane = PLANES["eight Gaussians"];
      const run = runPlane(scheduleOf("linear"), plane, { scale: 4, steps: 5, mistake: "none", seed: 0 });
      return [run.path.map((x) => [...x]), run.times, plane.centres];
    """)
    path = np.array(path).reshape(6, -1, 2)
    for moment, step in ((0, 0.0), (10, 0.5), (50, 2.5), (100, 5.0)):
        circles, lines = drawn(page, moment)
        k = min(int(step), 4)
        at = path[k] + (step - k) * (path[k + 1] - path[k])
        rings, points, chosen = circles[:8], circles[8:-1], circles[-1]
        np.testing.assert_allclose(rings[:, :2], on_canvas(plane), atol=1e-6)
        np.testing.assert_allclose(rings[:, 2], 2 * 0.4 * 128)
        assert [ring[3] > 3 for ring in rings] == [i in (1, 2) for i in range(8)]
        np.testing.assert_allclose(points[:, :2], on_canvas(at), atol=1e-3)
        np.testing.assert_allclose(chosen[:2], on_canvas(at[0])[0], atol=1e-3)
        np.testing.assert_allclose(lines, on_canvas([*path[: k + 1, 0], at[0]]), atol=1e-3)
        shown = page.find_element("css selector", "#live-time output").text
        assert shown == f"t = {times[k if step - k < 0.5 else k + 1]}"


def test_a_click_follows_the_nearest_point(page):
    """Of those that are shown at that moment."""
    page.execute_script(RECORD)
    circles, _ = drawn(page, 40)
    points = circles[8:-1, :2]
    for x, y in ((300, 420), (700, 650)):
        page.execute_script(
            """
            const canvas = byId("live-plane");
            const { left, top, width, height } = canvas.getBoundingClientRect();
            const [clientX, clientY] = [left + (arguments[0] / 1024) * width, top + (arguments[1] / 1024) * height];
            circles.length = 0;
            canvas.dispatchEvent(new MouseEvent("click", { clientX, clientY }));
            """,
            x, y,
        )  # fmt: skip
        *_, chosen = page.execute_script("return circles")
        nearest = points[np.hypot(*(points - (x, y)).T).argmin()]
        np.testing.assert_allclose(chosen[:2], nearest, atol=1e-3)

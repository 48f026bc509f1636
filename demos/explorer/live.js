// The panel of the plane: choices, the picture with the trail of one point, and the figures of where points end.
"use strict";

const CONSTANT_BETA = new Array(1000).fill(0.001);
const MOMENTS = 100; // of the time line, whatever the number of steps

function startLive() {
  const canvas = byId("live-plane");
  const pen = canvas.getContext("2d");
  const side = (canvas.width = canvas.height = 1024);
  const at = ([x, y]) => [((x / RANGE + 1) / 2) * side, ((1 - y / RANGE) / 2) * side];
  const figures = ["mean radius", "width of a cloud", "within 2 std of the data"].map((name) => {
    const value = element("dd");
    byId("live-readout").append(element("div", {}, element("dt", {}, name), value));
    return value;
  });
  let seed = 0;
  let chosen = 0;
  let run;
  let shown; // the places on the canvas

  const host = "live-controls";
  const named = (names) => names.map((name) => [name, name]);
  const set = choice(host, "Data", named(Object.keys(PLANES)), "eight Gaussians", changed);
  const steps = choice(host, "Steps", [5, 10, 50, 250].map((n) => [n, String(n)]), 50, changed);
  const scale = choice(host, "Guidance scale", [0, 1, 2, 4, 8].map((n) => [n, String(n)]), 0, changed);
  const mistake = choice(host, "Mistake", named(Object.keys(MISTAKES)), "none", changed);
  const time = timeline("live-time", "Time of the plane", MOMENTS, 40, (moment) => {
    const exact = (moment / MOMENTS) * (run.path.length - 1); // between two steps a point goes straight
    const k = Math.min(Math.floor(exact), run.path.length - 2);
    shown = run.path[k].map((value, i) => value + (exact - k) * (run.path[k + 1][i] - value));
    const t = run.times[exact - k < 0.5 ? k : k + 1];
    show(shown, k);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${CHAINS} points of ${set.value} at t = ${t}, mistake: ${mistake.value}`);
    return `t = ${t}`;
  });

  function show(x, k) {
    const style = getComputedStyle(canvas);
    pen.clearRect(0, 0, side, side);
    const { centres, isLabel, variance } = PLANES[set.value];
    pen.strokeStyle = style.color;
    centres.forEach((centre, i) => {
      pen.lineWidth = scale.value > 0 && isLabel(i) ? 6 : 2;
      ring(at(centre), (2 * Math.sqrt(variance) * side) / (2 * RANGE));
    });
    for (let i = 0; i < CHAINS; i++) {
      pen.fillStyle = pointColour(...pointOf(run.path[0], i));
      pen.beginPath();
      pen.arc(...at(pointOf(x, i)), 5, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.strokeStyle = style.outlineColor;
    pen.lineWidth = 3;
    pen.beginPath();
    for (const place of run.path.slice(0, k + 1)) pen.lineTo(...at(pointOf(place, chosen)));
    pen.lineTo(...at(pointOf(x, chosen)));
    pen.stroke();
    ring(at(pointOf(x, chosen)), 12);
  }

  function ring(place, radius) {
    pen.beginPath();
    pen.arc(...place, radius, 0, 2 * Math.PI);
    pen.stroke();
  }

  function changed() {
    const schedule = mistake.value === "constant beta" ? makeSchedule(CONSTANT_BETA) : scheduleOf("linear");
    const plane = PLANES[set.value];
    run = runPlane(schedule, plane, { scale: scale.value, steps: steps.value, mistake: mistake.value, seed });
    const { radius, width, near } = planeFigures(run.path.at(-1), plane.centres, plane.variance);
    [number(radius), number(width), `${Math.round(100 * near)}%`].forEach((text, i) => (figures[i].textContent = text));
    byId("live-note").replaceChildren(...typeset(MISTAKES[mistake.value]));
    byId("live-own").hidden = set.value !== "your own";
    time.update();
  }

  // A click follows the nearest point, or places data of one's own.
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [right, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const place = [(2 * right - 1) * RANGE, (1 - 2 * down) * RANGE];
    if (set.value === "your own") return addOwn(place);
    const distances = Array.from({ length: CHAINS }, (_, i) => distance(pointOf(shown, i), place));
    follow(distances.indexOf(Math.min(...distances)));
  });
  function addOwn(place) {
    PLANES["your own"].centres.push(place);
    changed();
  }
  function follow(point) {
    chosen = point % CHAINS;
    time.update();
  }
  byId("live-point").addEventListener("click", () => follow(chosen + 1));
  byId("live-add").addEventListener("click", () => addOwn([0, 1].map(() => (1.6 * Math.random() - 0.8) * RANGE)));
  byId("live-clear").addEventListener("click", () => {
    PLANES["your own"].centres.length = 1;
    changed();
  });
  byId("live-noise").addEventListener("click", () => {
    seed += 1;
    changed();
  });
  document.addEventListener("theme", () => time.update());
  changed();
  time.moveTo(MOMENTS);
}

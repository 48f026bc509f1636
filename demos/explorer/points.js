// Particles in the plane: the forward chain, and the flow along the learned field.
"use strict";

// A point's colour tells where it begins.  Each hue stands out, yellow from white and blue from black.
const [SATURATION, LIGHT, DARK] = [65, 33, 70]; // per cent
function pointColour(x, y) {
  const lightness = isDark() ? DARK : LIGHT;
  const hue = (Math.atan2(y, x) / Math.PI) * 180;
  return `hsl(${hue} ${SATURATION}% ${lightness}%)`;
}
const BETWEEN = 4; // moments are recorded; between two of them a particle goes straight, in so many frames

function startPoints() {
  const { times, num, view, grid, sets } = data.points;
  const canvas = byId("plane");
  const pen = canvas.getContext("2d");
  const side = (canvas.width = canvas.height = 1024); // sharp on a dense screen
  const place = (value) => ((value / view + 1) / 2) * side;
  const unpackedSets = {};
  const setOf = (name) =>
    (unpackedSets[name] ??= Object.fromEntries(Object.entries(sets[name]).map(([key, text]) => [key, unpacked(text)])));

  const changed = () => time.update();
  const names = Object.keys(sets);
  const name = choice("points-controls", "Data", names.map((n) => [n, n]), names[0], changed);
  const direction = choice("points-controls", "Direction", DIRECTIONS, "reverse", () => {
    time.moveTo(0);
    note();
  });
  const time = timeline("points-time", "Time of the points", (times.length - 1) * BETWEEN, 30, (frame) => {
    const set = setOf(name.value);
    const path = set[direction.value];
    const k = Math.min(Math.floor(frame / BETWEEN), times.length - 2);
    const share = frame / BETWEEN - k;
    pen.clearRect(0, 0, side, side);
    if (direction.value === "reverse") arrows(set.field, share < 0.5 ? k : k + 1);
    for (let i = 0; i < num; i++) {
      const [x, y] = [0, 1].map((axis) => {
        const [here, next] = [k, k + 1].map((moment) => path[(moment * num + i) * 2 + axis]);
        return here + share * (next - here);
      });
      pen.fillStyle = pointColour(path[i * 2], path[i * 2 + 1]);
      pen.beginPath();
      pen.arc(place(x), place(-y), 6, 0, 2 * Math.PI);
      pen.fill();
    }
    const inOrder = direction.value === "reverse" ? times.toReversed() : times;
    const t = inOrder[share < 0.5 ? k : k + 1];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${num} points of ${name.value} at t = ${t}, ${direction.value}`);
    return `t = ${t}`;
  });

  // The way that the flow carries a point there at that moment, longer where it is faster.
  function arrows(field, moment) {
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.lineWidth = 2;
    pen.beginPath();
    for (let i = 0; i < grid * grid; i++) {
      const [dx, dy] = [0, 1].map((axis) => field[(moment * grid * grid + i) * 2 + axis]);
      const speed = Math.hypot(dx, dy) || 1;
      const length = Math.min(speed, 3) * 12 + 3;
      const head = Math.min(7, length / 2);
      const [ux, uy] = [dx / speed, -dy / speed];
      const cell = (index) => place((((index + 1) / (grid + 1)) * 2 - 1) * view);
      const [x, y] = [cell(i % grid), side - cell(Math.floor(i / grid))];
      const [tipX, tipY] = [x + (ux * length) / 2, y + (uy * length) / 2];
      pen.moveTo(x - (ux * length) / 2, y - (uy * length) / 2);
      pen.lineTo(tipX, tipY);
      for (const turn of [-0.7, 0.7]) {
        pen.moveTo(tipX, tipY);
        pen.lineTo(tipX - head * (ux + turn * uy), tipY - head * (uy - turn * ux));
      }
    }
    pen.stroke();
  }

  function note() {
    const steps = data.points.training_steps.toLocaleString("en");
    const learned = `The arrows are what the network says, after ${steps} steps of training.`;
    const chance = "No arrows: forward there is only chance, and nothing is learned.";
    byId("points-note").textContent =
      `Colour tells where a point began. ${direction.value === "reverse" ? learned : chance}`;
  }
  document.addEventListener("theme", changed);
  note();
  time.moveTo(0);
}

// A small plot of one labelled curve for each schedule, the chosen one strong, with a mark that moves along it.
"use strict";

const LEFT = 30, RIGHT = 236, TOP = 28, BOTTOM = 150;

// curves: {name: [ts, values]}, where null stands for infinity.  ticks: marks on the y axis, the ends among them.
// places: where the names stand, by the points of the curves.  Returns mark(name, t, value).
function plot(host, title, curves, ticks, axis = "t", places = crossings) {
  const [low, high] = [ticks[0], ticks.at(-1)];
  const svg = svgElement("svg", { viewBox: "0 0 240 170", role: "img" });
  const last = Object.values(curves)[0][0].at(-1);
  const x = (t) => LEFT + (t / last) * (RIGHT - LEFT);
  const y = (value) => BOTTOM - ((Math.min(Math.max(value ?? high, low), high) - low) / (high - low)) * (BOTTOM - TOP);
  const text = (attributes, content) => {
    const made = svgElement("text", attributes, svg);
    made.textContent = content;
    return made;
  };

  text({ x: 0, y: 12, class: "title" }, title);
  for (const tick of ticks) {
    svgElement("line", { x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick), class: "axis" }, svg);
    text({ x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick));
  }
  for (const [t, anchor] of [[0, "start"], [last / 2, "middle"], [last, "end"]]) {
    text({ x: x(t), y: BOTTOM + 17, "text-anchor": anchor }, t ? Math.round(t) : `${axis} = 0`);
  }
  const paths = {};
  const points = {};
  for (const [name, [ts, values]] of Object.entries(curves)) {
    points[name] = ts.map((t, i) => [x(t), y(values[i])]);
    const d = points[name].map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    paths[name] = svgElement("path", { d }, svg);
  }
  const labels = {};
  for (const [name, [px, py]] of places(points)) {
    const late = px > (LEFT + 3 * RIGHT) / 4; // no room on the right
    const side = late ? { x: px - 4, "text-anchor": "end" } : { x: px + 4 };
    labels[name] = text({ ...side, y: py + 4, class: "name" }, name);
  }
  const mark = svgElement("line", { y1: TOP, y2: BOTTOM, class: "mark" }, svg);
  const dot = svgElement("circle", { r: 5 }, svg);
  byId(host).append(svg);
  return (name, t, value) => {
    for (const [other, path] of Object.entries(paths)) path.classList.toggle("chosen", other === name);
    for (const [other, label] of Object.entries(labels)) label.classList.toggle("chosen", other === name);
    svg.append(paths[name], mark, ...Object.values(labels), dot); // on top
    for (const end of ["x1", "x2"]) mark.setAttribute(end, x(t));
    dot.setAttribute("cx", x(t));
    dot.setAttribute("cy", y(value));
    svg.setAttribute("aria-label", `${title}, ${name}: ${number(value)} at ${axis} = ${t}`);
  };
}

// Each falling curve is named where it crosses a height of its own, so no two names meet: {name: [[x, y], ...]}.
function crossings(points) {
  const names = Object.keys(points);
  const crossing = (name, height) => points[name].find(([, py]) => py >= height) ?? points[name].at(-1);
  const middle = (TOP + BOTTOM) / 2;
  names.sort((a, b) => crossing(b, middle)[0] - crossing(a, middle)[0]); // the last to fall has the highest name
  return names.map((name, i) => {
    const height = TOP + ((i + 0.75) / (names.length + 0.5)) * (BOTTOM - TOP);
    return [name, [crossing(name, height)[0], height]];
  });
}

function svgElement(tag, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

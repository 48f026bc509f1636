// A small plot of one curve for each schedule, the chosen one strong, with a mark that moves along it.
"use strict";

const LEFT = 30, RIGHT = 236, TOP = 28, BOTTOM = 150;

// curves: {name: [ts, values]}, where null stands for infinity.  ticks: marks on the y axis, the ends among them.
function plot(host, title, curves, ticks) {
  const [low, high] = [ticks[0], ticks.at(-1)];
  const svg = svgElement("svg", { viewBox: "0 0 240 170", role: "img" });
  const last = Object.values(curves)[0][0].at(-1);
  const x = (t) => LEFT + (t / last) * (RIGHT - LEFT);
  const y = (value) => BOTTOM - ((Math.min(Math.max(value ?? high, low), high) - low) / (high - low)) * (BOTTOM - TOP);
  const text = (attributes, content) => (svgElement("text", attributes, svg).textContent = content);

  text({ x: 0, y: 12, class: "title" }, title);
  for (const tick of ticks) {
    svgElement("line", { x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick), class: "axis" }, svg);
    text({ x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick));
  }
  for (const [t, anchor] of [[0, "start"], [last / 2, "middle"], [last, "end"]]) {
    text({ x: x(t), y: BOTTOM + 17, "text-anchor": anchor }, t ? t : "t = 0");
  }
  const paths = {};
  for (const [name, [ts, values]] of Object.entries(curves)) {
    const d = ts.map((t, i) => `${i ? "L" : "M"}${x(t).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("");
    paths[name] = svgElement("path", { d }, svg);
  }
  const mark = svgElement("line", { y1: TOP, y2: BOTTOM, class: "mark" }, svg);
  const dot = svgElement("circle", { r: 5 }, svg);
  byId(host).append(svg);
  return (name, t, value) => {
    for (const [other, path] of Object.entries(paths)) path.classList.toggle("chosen", other === name);
    svg.append(paths[name], mark, dot); // on top
    for (const end of ["x1", "x2"]) mark.setAttribute(end, x(t));
    dot.setAttribute("cx", x(t));
    dot.setAttribute("cy", y(value));
    svg.setAttribute("aria-label", `${title}, ${name} schedule: ${number(value)} at t = ${t}`);
  };
}

function svgElement(tag, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

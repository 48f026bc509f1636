// The mistakes of pitfalls.py: each picture beside the right one, with the figures that were measured on them.
"use strict";

function startMistakes() {
  const { num, steps, train_steps: trainSteps, rows } = data.mistakes;
  byId("mistakes-intro").textContent =
    `Each was made on purpose, with the same noise as the right one, in ${steps} steps and without guidance, on ${num} digits ` +
    "of which ten are shown. Most leave some grey or less: the eye passes them, and only a test finds them. " +
    (trainSteps ? `Those in training each took a small network, ${trainSteps} steps.` : "Mistakes in training are added by --train-steps 400.");
  for (const row of rows) {
    const figures = element("dl", { class: "readout" });
    for (const [name, value] of Object.entries(row.figures)) {
      const right = row.right_figures[name];
      figures.append(element("div", {}, element("dt", {}, FIGURES[name]), element("dd", {}, right ? `${value} (right: ${right})` : value)));
    }
    const pair = ["right", "wrong"].map((kind) => {
      const says = kind === "right" ? "Ten digits drawn as it should be" : `Ten digits drawn with the mistake: ${row.name}`;
      const image = element("img", { class: "pixels", src: "data:image/png;base64," + row[kind], alt: says });
      return element("figure", { class: kind }, image, element("figcaption", {}, element("b", {}, kind)));
    });
    const tiles = element("div", { class: "tiles two" }, ...pair);
    byId("mistake-pairs").append(element("article", { class: "panel" }, element("h3", {}, row.name), tiles, element("p", {}, row.why), figures));
  }
}

const FIGURES = {
  "read as asked": "read as asked",
  border: "grey level of the border",
  moved: "moved, in grey levels",
};

// The mistakes of pitfalls.py: each picture beside the right one, with the figures that were measured on them.
"use strict";

function startMistakes() {
  const { num, shown, steps, train_steps: trainSteps, rows } = data.mistakes;
  byId("mistakes-intro").textContent =
    `Each was made on purpose, with the same noise as the right one, in ${steps} steps and without guidance. ` +
    `It is measured on ${num} pictures, of which ${shown} are shown. ` +
    "Most leave some grey or less: the eye passes them, and only a test finds them.";
  byId("mistakes-figures").textContent =
    `Levels run from 0 to 255. Border: their mean at the edge${data.is_grey ? ", where the data is black" : ""}. ` +
    "Moved: the root mean square difference from the right pictures.";
  byId("mistakes-training").textContent = trainSteps
    ? `Those in training, at the end, took a small network each, trained for ${trainSteps} steps.`
    : "Made with --train-steps 400, this page also shows mistakes in training.";
  for (const row of rows) {
    const words = element("div", {}, element("h3", {}, ...typeset(row.name)), element("p", {}, ...typeset(row.why)));
    const pictures = element("div", {}, half(row, "right"), half(row, row.kind), figuresOf(row));
    byId("mistake-pairs").append(element("article", {}, words, pictures));
  }
}

function half(row, kind) {
  const [sheet, alt] =
    kind === "right"
      ? [row.right, "Pictures drawn as it should be"]
      : [row.other, `Pictures drawn ${kind === "wrong" ? "with the mistake" : "the other way"}: ${row.name}`];
  const image = element("img", { class: "pixels", src: "data:image/png;base64," + sheet, alt });
  return element("figure", { class: kind === "wrong" ? "wrong" : "right" }, image, element("figcaption", {}, kind));
}

function figuresOf(row) {
  const list = element("dl");
  for (const [name, value] of Object.entries(row.figures)) {
    const right = row.right_figures[name];
    const said = right === undefined ? value : `${value}, right ${right}`;
    list.append(element("div", {}, element("dt", {}, name), element("dd", {}, said)));
  }
  return list;
}

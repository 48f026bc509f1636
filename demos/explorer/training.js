// The training of the network: its loss, by quarters of the times, and samples from one noise on the way.
"use strict";

function startTraining() {
  if (!data.training) return;
  byId("training").hidden = false;
  const { steps, loss, samples } = data.training;
  const logs = Object.entries(loss).map(([name, values]) => {
    const known = [...values.keys()].filter((i) => values[i] !== null);
    return [name, [known.map((i) => steps[i]), known.map((i) => Math.log10(values[i]))]];
  });
  const curves = Object.fromEntries(logs);
  const markLoss = plot("loss", "log₁₀ of the loss, by step", curves, [-4, -3, -2, -1, 0], "step", aboveTheEnds);
  timeline("training-time", "Step of the training", samples.length - 1, 900, (k) => {
    const [step, picture] = samples[k];
    const window = steps.findIndex((end) => end >= step);
    byId("samples").src = "data:image/png;base64," + picture;
    byId("samples").alt = `Samples after ${step} training steps`;
    markLoss("all t", steps[window], Math.log10(loss["all t"][window]));
    return `after ${step.toLocaleString("en")} of ${steps.at(-1).toLocaleString("en")} steps: ` +
      `loss ${number(loss["all t"][window])}`;
  }).moveTo(0);
}

// A name stands above the end of its curve, but that of all times, which has a quarter's curve beside it, at the left.
const aboveTheEnds = (points) =>
  Object.entries(points).map(([name, curve]) => {
    const [x, y] = curve.at(name === "all t" ? Math.floor(curve.length / 10) : -1);
    return [name, name === "all t" ? [x + 4, y + 12] : [x, y - 7]];
  });

// The reverse process: x_t, eps_hat and x_0_hat along a run of choice.
"use strict";

const SAMPLER_NAMES = { ddpm: "DDPM", ddim: "DDIM", "2m": "2M" };
const SAMPLER_NOTES = {
  ddpm: "DDPM adds fresh noise after each step, which wipes out what the steps before got wrong.",
  ddim: "DDIM adds none: where it ends was decided by the noise it began with.",
  "2m": "2M is DDIM that looks at its last two estimates, and so bends where DDIM goes straight.",
};
const SCALE_NOTES = {
  0: "At scale 0 no label is asked for: which one you choose makes no difference.",
  1: "At scale 1 the network gets the label.",
  3: "At scale 3 it goes three times as far from “anything” to “this label”, and is asked twice a step.",
};

function runOf(sampler, steps, scale) {
  return data.reverse.runs[`${sampler} ${steps} ${scale}`];
}

// At scale 0 there is one sheet for all labels.
const sheetOf = (run, digit) => run.sheets[Math.min(digit, run.sheets.length - 1)];

function startReverse() {
  const { samplers, steps, scales } = data.reverse;
  const host = "reverse-controls";
  const digit = choice(host, data.is_digits ? "Digit" : "Picture", digitOptions(), 0, changed);
  const sampler = choice(host, "Sampler", samplers.map((name) => [name, SAMPLER_NAMES[name]]), samplers[0], changed);
  const numSteps = choice(host, "Steps", steps.map((n) => [n, String(n)]), steps.at(-1), changed);
  const scale = choice(host, "Guidance scale", scales.map((s) => [s, String(s)]), scales.at(-1), changed);

  const ends = steps.map((n) => {
    const canvas = element("canvas");
    const figure = element("figure", {}, canvas, element("figcaption", {}, String(n)));
    byId("reverse-ends").append(figure);
    return { n, canvas, figure };
  });

  const time = timeline("reverse-time", "Step of the reverse process", 1, 250, (k) => {
    const run = runOf(sampler.value, numSteps.value, scale.value);
    const sheet = sheetOf(run, digit.value);
    const t = run.times[k];
    const what = `at t = ${t}, ${SAMPLER_NAMES[sampler.value]}, ${numSteps.value} steps, scale ${scale.value}`;
    const wanted = scale.value === 0 ? "no label" : `label ${className(data.labels[digit.value])}`;
    draw(byId("x-t"), sheet, k, 0, `x t, ${wanted}, ${what}`);
    draw(byId("eps-hat"), sheet, k, 1, t === 0 ? "No noise is left to predict" : `Epsilon hat, ${wanted}, ${what}`);
    draw(byId("x-0-hat"), sheet, k, 2, `x 0 hat, ${wanted}, ${what}`);
    return t === 0 ? "t = 0: the picture" : `t = ${t}`;
  });

  function changed() {
    const run = runOf(sampler.value, numSteps.value, scale.value);
    time.setLast(run.times.length - 1);
    time.update();
    byId("reverse-note").textContent = `${SAMPLER_NOTES[sampler.value]} ${SCALE_NOTES[scale.value]}`;
    for (const { n, canvas, figure } of ends) {
      const other = runOf(sampler.value, n, scale.value);
      draw(canvas, sheetOf(other, digit.value), other.times.length - 1, 0, `Where ${n} steps end`);
      figure.classList.toggle("now", n === numSteps.value);
    }
  }
  changed();
  time.moveTo(Math.round(runOf(sampler.value, numSteps.value, scale.value).times.length * 0.6));
}

// The reverse process: x_t, eps_hat, x_0_hat and the exact mean along a run of choice.
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

// x_0_hat - E[x_0 | x_t] = -sqrt(1 - alpha_bar_t) (eps_hat - E[eps | x_t]) / sqrt(alpha_bar_t).
function whyTheyDiffer(t, alphaBar, count) {
  if (t === 0) return "The exact mean ends in the nearest training picture; the network draws one of its own.";
  const root = number(Math.sqrt(alphaBar));
  const noise = `The network's small error in eps_hat is divided by sqrt(alpha_bar_t) = ${root} in x_0_hat`;
  if (alphaBar < 0.1) return `${noise}, and shows as speckle; the exact mean has no error, and is a blur.`;
  if (count >= 1.5) return `${noise}: that is why the two still differ.`;
  return `${noise}. One training picture alone fits, and is the exact mean; the network has not learned it by heart.`;
}

const counted = (value) => (value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

function startReverse() {
  const { samplers, steps, scales, known } = data.reverse;
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

  const ways = [0, 1, 2].map(() => byId("reverse-ways").appendChild(element("canvas")));

  const time = timeline("reverse-time", "Step of the reverse process", 1, 250, (k) => {
    const run = runOf(sampler.value, numSteps.value, scale.value);
    const sheet = sheetOf(run, digit.value);
    const t = run.times[k];
    const what = `at t = ${t}, ${SAMPLER_NAMES[sampler.value]}, ${numSteps.value} steps, scale ${scale.value}`;
    const wanted = scale.value === 0 ? "no label" : `label ${className(data.labels[digit.value])}`;
    draw(byId("x-t"), sheet, k, 0, `x t, ${wanted}, ${what}`);
    draw(byId("eps-hat"), sheet, k, 1, t === 0 ? "No noise is left to predict" : `Epsilon hat, ${wanted}, ${what}`);
    draw(byId("x-0-hat"), sheet, k, 2, `x 0 hat, ${wanted}, ${what}`);
    draw(byId("x-0-mean"), sheet, k, 3, `The exact mean of x 0, ${wanted}, ${what}`);
    const count = run.counts[Math.min(digit.value, run.counts.length - 1)][k];
    const all = scale.value === 0 ? known[0] : known[1][digit.value];
    byId("x-0-count").textContent = `${counted(count)} of ${counted(all)}`;
    byId("reverse-why").replaceChildren(...typeset(whyTheyDiffer(t, run.alpha_bar[k], count)));
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
    const row = Math.min(digit.value, run.sheets.length - 1);
    ways.forEach((canvas, way) => draw(canvas, run.ends, row, way, `Where the same start ends with noise ${way + 1}`));
  }
  changed();
  time.moveTo(Math.round(runOf(sampler.value, numSteps.value, scale.value).times.length * 0.6));
}

// Exercise: frames of a run, shuffled, are to be tapped in order.
"use strict";

const FRAMES = 6;
const WHY = {
  forward: "Fine strokes drown first, large shapes last.",
  reverse: "Large shapes come first, fine strokes last.",
};

function startOrder() {
  const direction = choice("order-controls", "Process", DIRECTIONS, "forward", begin);
  let taps = []; // buttons in the order in which they were tapped
  let frames = []; // in the right order: {column, t, button}

  function begin() {
    const runs = direction.value === "forward" ? forwardRuns() : reverseRuns();
    const run = runs[Math.floor(Math.random() * runs.length)]();
    frames = spread(run.alphaBar, FRAMES).map((column) => ({ column, t: run.times[column] }));
    taps = [];
    const host = byId("order-frames");
    host.replaceChildren();
    let shown = shuffled(frames);
    while (shown.every((frame, i) => frame === frames[i])) shown = shuffled(frames);
    shown.forEach((frame, i) => {
      const canvas = element("canvas");
      frame.letter = String.fromCharCode(65 + i);
      frame.button = element("button", { type: "button" }, canvas, element("small", {}, frame.letter));
      frame.button.addEventListener("click", () => tap(frame.button));
      host.append(frame.button);
      run.show(canvas, frame.column, `Frame ${frame.letter}`);
    });
    verdict("order-verdict", "");
    update();
  }

  function tap(button) {
    taps = taps.includes(button) ? taps.filter((other) => other !== button) : [...taps, button];
    verdict("order-verdict", "");
    update();
  }

  function update() {
    for (const { button, letter } of frames) {
      const place = taps.indexOf(button) + 1;
      button.querySelector(".place")?.remove();
      button.classList.remove("wrong");
      if (place) button.append(element("span", { class: "place", "aria-hidden": "true" }, String(place)));
      button.setAttribute("aria-pressed", String(place > 0));
      button.setAttribute("aria-label", place ? `Frame ${letter}, number ${place}` : `Frame ${letter}`);
    }
    byId("order-check").disabled = taps.length < frames.length;
  }

  byId("order-check").addEventListener("click", () => {
    const wrong = frames.filter(({ button }, i) => taps[i] !== button);
    for (const { button } of wrong) {
      button.classList.add("wrong");
      button.setAttribute("aria-label", `${button.getAttribute("aria-label")}, not its place`);
    }
    if (wrong.length) {
      const right = frames.length - wrong.length;
      verdict("order-verdict", `Not yet: ${right} of ${frames.length} are in their place.`, "bad");
      return;
    }
    frames.forEach(({ button, letter, t }) => (button.querySelector("small").textContent = `${letter}, t = ${t}`));
    verdict("order-verdict", `Right. ${WHY[direction.value]}`, "good");
  });
  byId("order-new").addEventListener("click", begin);
  begin();
}

// What may be asked: functions that each make one run, whose show(canvas, column, says) shows its moment times[column].
const forwardRuns = () =>
  data.forward.pictures.map((_, i) => () => {
    const schedule = scheduleOf("linear");
    const { chain } = makeChain(schedule, pixelsOf(i), 0);
    const times = [...schedule.alphaBar.keys()];
    const show = (canvas, t, says) => paint(canvas, chain(t), says);
    return { times, alphaBar: schedule.alphaBar, show };
  });

function reverseRuns() {
  const run = runOf("ddpm", data.reverse.steps.at(-1), data.reverse.scales.at(-1));
  return run.sheets.map((sheet) => () => {
    const show = (canvas, column, says) => draw(canvas, sheet, column, 0, says);
    return { times: run.times, alphaBar: run.alpha_bar, show };
  });
}

// Columns that differ to the eye: evenly spread over the signal left, sqrt(alpha_bar), not over t.
function spread(alphaBar, num) {
  if (alphaBar.length <= num) return [...alphaBar.keys()];
  const columns = new Set();
  for (let i = 0; i < num; i++) {
    const wanted = 0.15 + (0.85 * i) / (num - 1);
    const distance = alphaBar.map((a) => Math.abs(Math.sqrt(a) - wanted));
    columns.add(distance.indexOf(Math.min(...distance)));
  }
  return [...columns].sort((a, b) => a - b);
}

function verdict(id, text, kind = "") {
  byId(id).textContent = text;
  byId(id).className = `verdict ${kind}`;
}

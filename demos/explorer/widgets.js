// What the sections are built of: an element, a choice between options, a time line that plays.
"use strict";

const byId = (id) => document.getElementById(id);

// Text is only ever set as text, so a name from a file cannot become markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Radio buttons side by side: arrow keys move within, Tab moves on.  options: [[value, text], ...].
function choice(host, legend, options, first, changed) {
  const name = `choice-${document.querySelectorAll("fieldset").length}`;
  const chosen = { value: first };
  const short = options.length === 10 && options.every(([, text]) => text.length === 1);
  const row = element("div", { class: short ? "options ten" : "options" });
  for (const [value, text] of options) {
    const input = element("input", { type: "radio", name, value });
    input.checked = value === first;
    input.addEventListener("change", () => {
      chosen.value = value;
      changed();
    });
    row.append(element("label", {}, input, element("span", {}, text)));
  }
  byId(host).append(element("fieldset", {}, element("legend", {}, legend), row));
  return chosen;
}

// A slider over 0..last with a button that plays it; show(i) draws moment i and returns what to say of it.
function timeline(host, label, last, msPerMoment, show) {
  const slider = element("input", { type: "range", min: 0, max: last, value: 0, "aria-label": label });
  const button = element("button", { type: "button" }, "Play");
  const said = element("output", { "aria-live": "off" }); // the slider itself says it, when it is moved by hand
  let playing = null; // the number of the next frame, while playing
  let begin = 0; // the moment that play counts from

  function update() {
    const text = show(Number(slider.value));
    said.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  function pause() {
    cancelAnimationFrame(playing);
    playing = null;
    button.textContent = "Play";
  }
  function play() {
    if (Number(slider.value) >= Number(slider.max)) {
      slider.value = 0;
      update(); // a pause may come before the first frame
    }
    begin = Number(slider.value);
    const began = performance.now();
    const tick = (now) => {
      slider.value = begin + Math.floor(Math.max(0, now - began) / msPerMoment);
      update();
      if (Number(slider.value) >= Number(slider.max)) pause();
      else playing = requestAnimationFrame(tick);
    };
    button.textContent = "Pause";
    playing = requestAnimationFrame(tick);
  }

  // A touch pauses at once, for one that leaves the value as it is makes no "input".
  slider.addEventListener("pointerdown", pause);
  slider.addEventListener("keydown", (event) => {
    if (/^(Arrow|Page|Home|End)/.test(event.key)) pause(); // Tab only walks past
  });
  slider.addEventListener("input", () => {
    pause();
    update();
  });
  button.addEventListener("click", () => (playing === null ? play() : pause()));
  byId(host).append(element("div", { class: "timeline", role: "group", "aria-label": label }, button, slider, said));
  return {
    update,
    // Another run may have another number of moments: stay at the same share of it, and let play go on from there.
    setLast(newLast) {
      const moment = Number(slider.value);
      const share = moment / Number(slider.max);
      slider.max = newLast;
      slider.value = Math.round(share * newLast);
      begin += Number(slider.value) - moment;
    },
    moveTo(moment) {
      pause();
      slider.value = moment;
      update();
    },
  };
}

function shuffled(items) {
  const rest = [...items];
  for (let i = rest.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [rest[i], rest[j]] = [rest[j], rest[i]];
  }
  return rest;
}

// 3 digits, and a true minus sign.
function number(value) {
  if (value === null) return "∞";
  const small = value !== 0 && Math.abs(value) < 0.001;
  return (small ? value.toExponential(1) : String(Number(value.toPrecision(3)))).replace(/-/g, "−");
}

const digitOptions = () => data.labels.map((label, i) => [i, className(label)]);
const DIRECTIONS = [["forward", "forward: data to noise"], ["reverse", "reverse: noise to data"]];

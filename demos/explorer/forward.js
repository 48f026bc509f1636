// The forward process, computed while one plays: the chain beside the closed form, under a schedule of choice.
"use strict";

function startForward() {
  const names = Object.keys(data.forward.schedules);
  const curvesOf = (value) => Object.fromEntries(names.map((name) => [name, curveOf(scheduleOf(name), value)]));
  const markAlphaBar = plot("alpha-bar", "ᾱₜ, what is left of the picture", curvesOf(alphaBarAt), [0, 0.5, 1]);
  const markLogSnr = plot("log-snr", "log SNR, picture against noise", curvesOf(logSnr), [-12, 0, 10]);
  const readout = ["signal √ᾱₜ", "noise √(1 − ᾱₜ)", "log SNR", "largest difference of the two"].map((name) => {
    const value = element("dd");
    byId("forward-readout").append(element("div", {}, element("dt", {}, name), value));
    return value;
  });
  let seed = 0;
  let run;

  const OWN = -1;
  const pad = makePad(byId("pad"), () => changed());
  byId("pad-clear").addEventListener("click", pad.clear);
  const options = [...data.classes.map((name, i) => [i, name]), [OWN, "your own"]];
  const picture = choice("forward-controls", data.is_digits ? "Digit" : "Picture", options, 0, changed);
  const chosen = choice("forward-controls", "Schedule", names.map((name) => [name, name]), "linear", changed);
  const time = timeline("forward-time", "Time t of the forward process", scheduleOf("linear").T, 5, (t) => {
    const schedule = scheduleOf(chosen.value);
    const [chain, jump] = [run.chain(t), run.jump(t)];
    const name = picture.value === OWN ? "your picture" : `a ${className(picture.value)}`;
    const what = `${name} at t = ${t}, ${chosen.value} schedule`;
    paint(byId("chain"), chain, `The chain: ${what}`);
    paint(byId("jump"), jump, `One jump: ${what}`);
    byId("chain-steps").textContent = t === 1 ? "1 small step" : `${t} small steps`;
    const left = schedule.alphaBar[t];
    markAlphaBar(chosen.value, t, left);
    markLogSnr(chosen.value, t, logSnr(schedule, t));
    const noise = Math.sqrt(schedule.oneMinusAlphaBar[t]);
    const values = [Math.sqrt(left), noise, logSnr(schedule, t), largestGap(chain, jump)];
    readout.forEach((place, i) => (place.textContent = number(values[i])));
    return `t = ${t} of ${schedule.T}`;
  });

  function changed() {
    const schedule = scheduleOf(chosen.value);
    byId("own").hidden = picture.value !== OWN;
    run = makeChain(schedule, picture.value === OWN ? pad.pixels : pixelsOf(picture.value), seed);
    time.setLast(schedule.T);
    time.update();
  }
  byId("forward-noise").addEventListener("click", () => {
    seed += 1;
    changed();
  });
  changed();
  time.moveTo(Math.round(scheduleOf("linear").T / 4)); // something to see
}

const alphaBarAt = (schedule, t) => schedule.alphaBar[t];

// A value at 101 times from 0 to T: [ts, values].
function curveOf(schedule, value) {
  const ts = Array.from({ length: 101 }, (_, i) => Math.round((i / 100) * schedule.T));
  return [ts, ts.map((t) => value(schedule, t))];
}

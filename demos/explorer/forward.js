// The forward process: the chain beside the closed form, under a schedule of choice.
"use strict";

function startForward() {
  const { times, schedules } = data.forward;
  const names = Object.keys(schedules);
  const curvesOf = (k) => Object.fromEntries(names.map((name) => [name, [0, k].map((i) => schedules[name].curve[i])]));
  const markAlphaBar = plot("alpha-bar", "ᾱₜ, what is left of the picture", curvesOf(1), [0, 0.5, 1]);
  const markLogSnr = plot("log-snr", "log SNR, picture against noise", curvesOf(2), [-12, 0, 10]);
  const readout = ["signal √ᾱₜ", "noise √(1 − ᾱₜ)", "log SNR", "largest difference of the two"].map((name) => {
    const value = element("dd");
    byId("forward-readout").append(element("div", {}, element("dt", {}, name), value));
    return value;
  });

  const changed = () => time.update();
  const digit = choice("forward-controls", data.is_digits ? "Digit" : "Picture", digitOptions(), 0, changed);
  const chosen = choice("forward-controls", "Schedule", names.map((name) => [name, name]), "linear", changed);
  const time = timeline("forward-time", "Time t of the forward process", times.length - 1, 120, (k) => {
    const schedule = schedules[chosen.value];
    const sheet = schedule.sheets[digit.value];
    const t = times[k];
    const what = `a ${className(data.labels[digit.value])} at t = ${t}, ${chosen.value} schedule`;
    draw(byId("chain"), sheet, k, 0, `The chain: ${what}`);
    draw(byId("jump"), sheet, k, 1, `One jump: ${what}`);
    byId("chain-steps").textContent = t === 1 ? "1 small step" : `${t} small steps`;
    markAlphaBar(chosen.value, t, schedule.alpha_bar[k]);
    markLogSnr(chosen.value, t, schedule.log_snr[k]);
    const left = schedule.alpha_bar[k];
    const values = [Math.sqrt(left), Math.sqrt(1 - left), schedule.log_snr[k], schedule.gap[k]];
    readout.forEach((place, i) => (place.textContent = number(values[i])));
    return `t = ${t} of ${times.at(-1)}`;
  });
  time.moveTo(Math.round(times.length / 4)); // something to see
}

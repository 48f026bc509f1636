// The forward process as tinydiff/diffusion has it, for what is computed while one plays.
"use strict";

// beta: the steps 1..T.  Tables as in schedule.py, with an entry for t = 0: alpha_bar_0 = 1.
function makeSchedule(beta) {
  const T = beta.length;
  const schedule = { T, beta: [0], alpha: [1], alphaBar: [1], oneMinusAlphaBar: [0] };
  for (let t = 1; t <= T; t++) {
    const b = beta[t - 1];
    schedule.beta.push(b);
    schedule.alpha.push(1 - b);
    schedule.alphaBar.push(schedule.alphaBar[t - 1] * (1 - b));
    schedule.oneMinusAlphaBar.push(schedule.oneMinusAlphaBar[t - 1] * (1 - b) + b); // exact where 1 - alpha_bar rounds
  }
  return schedule;
}

// log(alpha_bar_t/(1 - alpha_bar_t)), or null for infinity at t = 0.
const logSnr = ({ alphaBar, oneMinusAlphaBar }, t) => (t ? Math.log(alphaBar[t] / oneMinusAlphaBar[t]) : null);

// x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) noise                            eq. 2 of Ho et al. 2020
function qStep({ alpha, beta }, x, t, noise) {
  const [keep, add] = [Math.sqrt(alpha[t]), Math.sqrt(beta[t])];
  return x.map((value, i) => keep * value + add * noise[i]);
}

// x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps                     eq. 4
function qSample({ alphaBar, oneMinusAlphaBar }, x0, t, eps) {
  const [keep, add] = [Math.sqrt(alphaBar[t]), Math.sqrt(oneMinusAlphaBar[t])];
  return x0.map((value, i) => keep * value + add * eps[i]);
}

// The schedules of the page by name, each made when it is first needed.
const madeSchedules = {};
const scheduleOf = (name) => (madeSchedules[name] ??= makeSchedule(unpackedFloats(data.forward.schedules[name])));

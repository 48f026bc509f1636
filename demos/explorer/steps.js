// Reverse steps of points in the plane with an exact denoiser, as tinydiff/diffusion and demos/exact.py have them.
// Points are one array x, y, x, y, ...; a step goes from t to any earlier s.
"use strict";

// alpha_{t|s} = alpha_bar_t/alpha_bar_s and beta_{t|s} = 1 - alpha_{t|s}.
const alphaGiven = ({ alphaBar }, t, s) => alphaBar[t] / alphaBar[s];
const betaGiven = ({ alphaBar, oneMinusAlphaBar }, t, s) => (oneMinusAlphaBar[t] - oneMinusAlphaBar[s]) / alphaBar[s];

// The pairs (t, s) of n evenly spread steps from T to 0.
function timestepPairs(T, n) {
  const times = Array.from({ length: n + 1 }, (_, i) => Math.floor((i * T) / n));
  return times.slice(1).map((t, i) => [t, times[i]]).reverse();
}

// E[eps | x_t] for data N(centre_k, variance I), each k as likely: mixture_eps_fn of demos/exact.py.
function mixtureEps({ alphaBar, oneMinusAlphaBar }, { centres, variance }, x, t) {
  const a = alphaBar[t];
  const root = Math.sqrt(a);
  const S = a * variance + oneMinusAlphaBar[t];
  const eps = new Float64Array(x.length);
  const logits = new Float64Array(centres.length);
  const halves = centres.map(([cx, cy]) => (a * (cx * cx + cy * cy)) / 2);
  for (let i = 0; i < x.length; i += 2) {
    let top = -Infinity;
    for (let k = 0; k < centres.length; k++) {
      logits[k] = (root * (x[i] * centres[k][0] + x[i + 1] * centres[k][1]) - halves[k]) / S;
      top = Math.max(top, logits[k]);
    }
    let [sum, meanX, meanY] = [0, 0, 0];
    for (let k = 0; k < centres.length; k++) {
      const weight = Math.exp(logits[k] - top); // the largest is 1: no underflow to 0/0 far out
      sum += weight;
      meanX += weight * centres[k][0];
      meanY += weight * centres[k][1];
    }
    const scale = Math.sqrt(oneMinusAlphaBar[t]) / S;
    eps[i] = scale * (x[i] - (root * meanX) / sum);
    eps[i + 1] = scale * (x[i + 1] - (root * meanY) / sum);
  }
  return eps;
}

// eps_u + scale (eps_c - eps_u): classifier_free of guidance.py.
function guidedEps(schedule, { all, label }, scale, x, t) {
  const eps = mixtureEps(schedule, all, x, t);
  if (scale === 0) return eps;
  const wanted = mixtureEps(schedule, label, x, t);
  return eps.map((value, i) => value + scale * (wanted[i] - value));
}

// x_0 = (x_t - sqrt(1 - alpha_bar_t) eps)/sqrt(alpha_bar_t)
function x0FromEps({ alphaBar, oneMinusAlphaBar }, x, t, eps) {
  const [root, noise] = [Math.sqrt(alphaBar[t]), Math.sqrt(oneMinusAlphaBar[t])];
  return x.map((value, i) => (value - noise * eps[i]) / root);
}

// The weights of x_0 and of x_t in the mean of q(x_s | x_t, x_0), eq. 7, and its variance, beta_tilde_{t|s}.
function posterior(schedule, t, s) {
  const [beta, rest] = [betaGiven(schedule, t, s), schedule.oneMinusAlphaBar];
  return {
    ofX0: (Math.sqrt(schedule.alphaBar[s]) * beta) / rest[t],
    ofXt: (Math.sqrt(alphaGiven(schedule, t, s)) * rest[s]) / rest[t],
    variance: (beta * rest[s]) / rest[t],
  };
}

// One step of DDPM; `mistake` is a name of MISTAKES, of which some change the step.
function ddpmStep(schedule, x, eps, t, s, noise, mistake) {
  const { ofX0, ofXt, variance } = posterior(schedule, t, s);
  const x0 = x0FromEps(schedule, x, t, eps);
  const sign = mistake === "wrong sign" ? -1 : 1;
  let added = variance;
  if (mistake === "no noise") added = 0;
  if (mistake === "beta for beta_tilde" && s > 0) added = betaGiven(schedule, t, s);
  if (mistake === "noise at the end" && s === 0) added = betaGiven(schedule, t, s);
  return x.map((value, i) => ofX0 * x0[i] + sign * ofXt * value + Math.sqrt(added) * noise[i]);
}

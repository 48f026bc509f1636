// A picture on its way to noise: every step of the chain, and the jump with the noise that the chain has drawn.
"use strict";

// chain(t) and jump(t) of x_0, both pixels in -1..1.  A second chain that begins at 0 collects the noise: at time t its
// value is sqrt(1 - alpha_bar_t) eps.
function makeChain(schedule, x0, seed) {
  const draw = normals(seed);
  const [xs, noises] = [[x0], [new Float32Array(x0.length)]];
  for (let t = 1; t <= schedule.T; t++) {
    const noise = draw(x0.length);
    xs.push(qStep(schedule, xs[t - 1], t, noise));
    noises.push(qStep(schedule, noises[t - 1], t, noise));
  }
  const epsOf = (t) => noises[t].map((value) => value / Math.sqrt(schedule.oneMinusAlphaBar[t] || 1));
  return { chain: (t) => xs[t], jump: (t) => qSample(schedule, x0, t, epsOf(t)) };
}

const largestGap = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

// The pixels of the page's picture i, in -1..1.
const pixelsOf = (i) => Float32Array.from(bytesOf(data.forward.pictures[i]), (level) => level / 127.5 - 1);

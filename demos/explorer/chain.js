// A picture on its way to noise: every step of the chain, and the jump with the noise that the chain has drawn.
"use strict";

// The noise of step t is the same for every picture of a seed; it is drawn when it is first needed.
const drawnNoises = {};
function noiseOf(seed, size, t) {
  const drawn = (drawnNoises[`${seed} ${size}`] ??= { draw: normals(seed), noises: [null] });
  while (drawn.noises.length <= t) drawn.noises.push(drawn.draw(size));
  return drawn.noises[t];
}

// chain(t) and jump(t) of x_0, both pixels in -1..1.  A second chain that begins at 0 collects the noise: at time t its
// value is sqrt(1 - alpha_bar_t) eps.
function makeChain(schedule, x0, seed) {
  const [xs, collected] = [[x0], [new Float32Array(x0.length)]];
  const extend = (t) => {
    for (let next = xs.length; next <= t; next++) {
      const noise = noiseOf(seed, x0.length, next);
      for (const chain of [xs, collected]) chain.push(qStep(schedule, chain[next - 1], next, noise));
    }
  };
  return {
    chain(t) {
      extend(t);
      return xs[t];
    },
    jump(t) {
      extend(t);
      const eps = collected[t].map((value) => value / Math.sqrt(schedule.oneMinusAlphaBar[t] || 1));
      return qSample(schedule, x0, t, eps);
    },
  };
}

const largestGap = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

// The pixels of the page's picture i, in -1..1.
const pixelsOf = (i) => Float32Array.from(bytesOf(data.forward.pictures[i]), (level) => level / 127.5 - 1);

// Random numbers that are the same for the same seed, so that going back shows what was there.
"use strict";

// Uniform numbers in 0..1: a counter of 32 bits, mixed (Marsaglia's xorshift and multiplications).
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  };
}

// A function that gives n standard normal numbers each time (Box and Muller 1958).
function normals(seed) {
  const uniform = uniforms(seed);
  return (n) => {
    const drawn = new Float32Array(n);
    for (let i = 0; i < n; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform())); // of a number above 0
      const angle = 2 * Math.PI * uniform();
      drawn[i] = radius * Math.cos(angle);
      if (i + 1 < n) drawn[i + 1] = radius * Math.sin(angle);
    }
    return drawn;
  };
}

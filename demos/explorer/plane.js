// The plane, computed while one plays: points of choice, an exact denoiser, and mistakes that can be switched on.
"use strict";

const RANGE = 4; // the plane is shown within -RANGE..RANGE
const CHAINS = 300;
const MISTAKES = {
  none: "As it should be. With few steps even that misses the data: each step goes straight towards a mean.",
  "wrong sign": "A minus between the two terms of eq. 7 throws a point to the other side; in many steps all end in 0.",
  "no noise": "Each step lands on a mean: in few steps all end in the middle, in many the clouds are too small.",
  "noise at the end": "The last step adds noise that no later step removes: the fewer the steps, the more of it.",
  "constant beta":
    "beta_t is 0.001 and alpha_bar_T 0.37: a chain begins where x_T never is. The exact eps_hat brings it back; " +
    "a network has never seen such a place.",
  "beta for beta_tilde": "Not wrong: the other variance of Ho et al. The fewer the steps, the more the two differ.",
};
const circle = (k) => [2 * Math.cos(((k + 0.5) * Math.PI) / 4), 2 * Math.sin(((k + 0.5) * Math.PI) / 4)];
const moon = (k) => {
  const [side, angle] = [k % 2 ? 1 : -1, (Math.floor(k / 2) / 11) * Math.PI];
  return [Math.SQRT2 * side * (Math.cos(angle) - 0.5), Math.SQRT2 * side * (Math.sin(angle) - 0.25)];
};

// Each is a mixture of Gaussians, {centres, variance}; isLabel(k): whether the label asks for centre k.
const many = (n, place) => Array.from({ length: n }, (_, k) => place(k));
const PLANES = {
  "eight Gaussians": { centres: many(8, circle), variance: 0.16, isLabel: (k) => k === 1 || k === 2 },
  "two moons": { centres: many(24, moon), variance: 0.01, isLabel: (k) => k % 2 === 0 },
  "your own": { centres: [[-2, 1.5], [2, 1.5], [0, -2]], variance: 0.01, isLabel: (k) => k === 0 },
};

// The places of all chains after each step, the start first: [Float64Array, ...], and the time of each.
function runPlane(schedule, { centres, variance, isLabel }, { scale, steps, mistake, seed, num = CHAINS }) {
  const data = {
    all: { centres, variance },
    label: { centres: centres.filter((_, k) => isLabel(k)), variance },
  };
  const draw = normals(seed);
  const path = [Float64Array.from(draw(2 * num))];
  const times = [schedule.T];
  for (const [t, s] of timestepPairs(schedule.T, steps)) {
    const eps = guidedEps(schedule, data, scale, path.at(-1), t);
    path.push(ddpmStep(schedule, path.at(-1), eps, t, s, draw(2 * num), mistake));
    times.push(s);
  }
  return { path, times };
}

const pointOf = (x, i) => [x[2 * i], x[2 * i + 1]];
const distance = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Of the points x: the mean distance from 0, the width of the clouds, and the share within 2 std of a centre.
// A cloud: the points that are nearest to one centre; width^2 is the mean of |x - mean of its cloud|^2/2.
function planeFigures(x, centres, variance) {
  const points = Array.from({ length: x.length / 2 }, (_, i) => pointOf(x, i));
  const clouds = centres.map(() => []);
  const near = points.map((point) => {
    const distances = centres.map((centre) => distance(point, centre));
    const least = Math.min(...distances);
    clouds[distances.indexOf(least)].push(point);
    return Number(least <= 2 * Math.sqrt(variance));
  });
  const squares = clouds.flatMap((cloud) => {
    const middle = [0, 1].map((axis) => mean(cloud.map((point) => point[axis])));
    return cloud.map((point) => distance(point, middle) ** 2 / 2);
  });
  const radius = mean(points.map((point) => Math.hypot(...point)));
  return { radius, width: Math.sqrt(mean(squares)), near: mean(near) };
}

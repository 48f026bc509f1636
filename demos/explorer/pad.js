// A pad to draw a picture of one's own on, with the pointer or with arrow keys and the space bar.
"use strict";

// Pixels in -1..1, of the page's size; changed() after each stroke.
function makePad(canvas, changed) {
  const channels = pixelsOf(0).length / (WIDTH * HEIGHT);
  const pixels = new Float32Array(WIDTH * HEIGHT * channels).fill(-1);
  let brush = [Math.floor(WIDTH / 2), Math.floor(HEIGHT / 2)];

  // A soft dot, as wide as a pen stroke of the data: white within one pixel, black beyond two.
  function dot([x, y]) {
    for (let row = 0; row < HEIGHT; row++) {
      for (let column = 0; column < WIDTH; column++) {
        const ink = 2 * Math.min(Math.max(2 - Math.hypot(column - x, row - y), 0), 1) - 1;
        for (let c = 0; c < channels; c++) {
          const i = (row * WIDTH + column) * channels + c;
          pixels[i] = Math.max(pixels[i], ink);
        }
      }
    }
  }
  function show() {
    paint(canvas, pixels, "A pad: draw with the pointer, or with the arrow keys and the space bar");
    canvas.setAttribute("role", "application");
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#74cfcb"; // where the next key paints, on black in both schemes
    if (document.activeElement === canvas) pen.fillRect(...brush, 1, 1);
  }
  function stroke(place) {
    dot(place);
    show();
    changed();
  }

  let last = null; // where the pointer was, while it is down
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    const [right, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [right * WIDTH - 0.5, down * HEIGHT - 0.5];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = placeOf(event);
    stroke(last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const [from, to] = [last, placeOf(event)];
    for (let part = 0.25; part < 1; part += 0.25) dot(from.map((value, i) => value + part * (to[i] - value)));
    stroke(to);
    last = to;
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") stroke(brush);
    else if (event.key in MOVES) {
      const [dx, dy] = MOVES[event.key];
      brush = [Math.min(Math.max(brush[0] + dx, 0), WIDTH - 1), Math.min(Math.max(brush[1] + dy, 0), HEIGHT - 1)];
      show();
    } else return;
    event.preventDefault(); // the page must not scroll
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, show);
  canvas.tabIndex = 0;
  show();
  return {
    pixels,
    clear() {
      pixels.fill(-1);
      show();
      changed();
    },
  };
}

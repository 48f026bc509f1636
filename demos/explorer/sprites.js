// The recorded runs, and how a picture of one of their sheets comes onto a canvas.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const [HEIGHT, WIDTH] = data.size;
const className = (label) => data.classes[label];
const pictures = new Map(); // sheet (base64) -> promise of its image, decoded when it is first needed

function picture(sheet) {
  if (!pictures.has(sheet)) {
    const image = new Image();
    image.src = "data:image/png;base64," + sheet;
    pictures.set(sheet, image.decode().then(() => image));
  }
  return pictures.get(sheet);
}

// Show one picture of a sheet; `says` is what it shows, in words.
async function draw(canvas, sheet, column, row, says) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", says);
  const wish = (canvas.wish = {}); // a later call may be done earlier: only the last wish counts
  const image = await picture(sheet);
  if (canvas.wish !== wish) return;
  canvas.width = WIDTH;
  canvas.height = HEIGHT;
  canvas.getContext("2d").drawImage(image, column * WIDTH, row * HEIGHT, WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT);
}

// The opposite of packed() in explorer_runs.py.
function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (unit) => unit / 4096);
}

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

// Show pixels in -1..1, such as those of a chain; what is outside is cut.
function paint(canvas, pixels, says) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", says);
  canvas.wish = null;
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const image = new ImageData(WIDTH, HEIGHT);
  const channels = pixels.length / (WIDTH * HEIGHT);
  for (let i = 0; i < WIDTH * HEIGHT; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = (pixels[i * channels + (c % channels)] + 1) * 127.5;
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The opposites of what explorer_runs.py packs.
const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const unpackedFloats = (base64) => new Float32Array(bytesOf(base64).buffer);
const unpacked = (base64) => Float32Array.from(new Int16Array(bytesOf(base64).buffer), (unit) => unit / 4096);

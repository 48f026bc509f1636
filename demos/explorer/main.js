// Starts every section, and says where all this comes from.
"use strict";

byId("about").textContent = `The network: ${data.about}`;
byId("made").textContent = `Made by demos/explorer/explorer.py of tinydiff from ${data.about}`;
startTheme();
startLinks();
startSymbols();
hero();
startForward();
startReverse();
startPoints();
startTraining();
startLive();
startMistakes();
startOrder();
startGuess();
startCards();

// Above everything: one run on its way from noise to picture.
function hero() {
  const run = runOf("ddpm", data.reverse.steps.at(-1), data.reverse.scales.at(-1));
  const last = run.times.length - 1;
  for (let i = 0; i < 8; i++) {
    const canvas = element("canvas");
    const column = Math.round((i / 7) * last);
    byId("hero").append(canvas);
    draw(canvas, run.sheets.at(-1), column, 0, `A run of the reverse process at t = ${run.times[column]}`);
  }
}

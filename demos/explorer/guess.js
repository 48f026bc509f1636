// Exercise: name the picture under as much noise as you can.  To try all names is no way: three wrong answers end it.
"use strict";

const FREE = 3;

function startGuess() {
  const { times, log_snr: logSnr, items } = data.riddles;
  let queue = [];
  let item, k, wrong;

  const answers = data.classes.map((name, label) => {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => answer(label));
    byId("guess-answers").append(button);
    return button;
  });

  function begin() {
    if (!queue.length) queue = shuffled(items);
    item = queue.pop();
    k = 0;
    wrong = 0;
    byId("guess-reveal").hidden = true;
    answers.forEach((button) => (button.disabled = false));
    verdict("guess-verdict", "");
    show();
  }

  function show() {
    draw(byId("riddle"), item.sheet, k, 0, `A hidden picture under noise at t = ${times[k]}`);
    byId("riddle-time").textContent = `t = ${times[k]}, log SNR ${number(logSnr[k])}`;
    byId("guess-less").disabled = k === times.length - 1;
  }

  function answer(label) {
    if (label === item.label) {
      const tries = wrong ? `, after ${wrong} wrong ${wrong === 1 ? "guess" : "guesses"}` : "";
      return end(`Right, ${className(label)}, at t = ${times[k]}${tries}.`, "good");
    }
    wrong += 1;
    if (wrong === FREE) return end(`Not ${className(label)}: it was ${className(item.label)}. Missed.`, "bad");
    answers[label].disabled = true;
    const left = FREE - wrong === 1 ? "One answer is left" : `${FREE - wrong} answers are left`;
    verdict("guess-verdict", `Not ${className(label)}. Some noise is gone: look again. ${left}.`, "bad");
    lessNoise();
  }

  function end(text, kind) {
    verdict("guess-verdict", text, kind);
    answers.forEach((button) => (button.disabled = true));
    byId("guess-less").disabled = true;
    byId("guess-reveal").hidden = false;
    draw(byId("riddle-answer"), item.answer, 0, 0, `The picture: ${className(item.label)}`);
    draw(byId("riddle-seen"), item.sheet, k, 1, `What the network makes of it without a label at t = ${times[k]}`);
    draw(byId("riddle-mean"), item.sheet, k, 2, `The exact mean of all pictures that it could be at t = ${times[k]}`);
    const came = kind === "good" ? `at t = ${times[k]}${wrong ? `, ${wrong} wrong` : ""}` : "missed";
    byId("guess-history").append(element("li", {}, `${className(item.label)} ${came}`));
  }

  function lessNoise() {
    k = Math.min(k + 1, times.length - 1);
    show();
  }

  byId("guess-less").addEventListener("click", lessNoise);
  byId("guess-next").addEventListener("click", begin);
  begin();
}

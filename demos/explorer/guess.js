// Exercise: name the picture under as much noise as you can.
"use strict";

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
    if (label !== item.label) {
      wrong += 1;
      answers[label].disabled = true;
      verdict("guess-verdict", `Not ${className(label)}. Take some noise away and look again.`, "bad");
      return;
    }
    const tries = wrong ? `, after ${wrong} wrong ${wrong === 1 ? "guess" : "guesses"}` : "";
    verdict("guess-verdict", `Right, ${className(label)}, at t = ${times[k]}${tries}.`, "good");
    answers.forEach((button) => (button.disabled = true));
    byId("guess-less").disabled = true;
    byId("guess-reveal").hidden = false;
    draw(byId("riddle-answer"), item.answer, 0, 0, `The picture: ${className(label)}`);
    draw(byId("riddle-seen"), item.sheet, k, 1, `What the network makes of it without a label at t = ${times[k]}`);
    byId("guess-history").append(element("li", {}, `${className(label)} at t = ${times[k]}${tries}`));
  }

  byId("guess-less").addEventListener("click", () => {
    k += 1;
    show();
  });
  byId("guess-next").addEventListener("click", begin);
  begin();
}

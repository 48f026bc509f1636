// Flashcards: first choose an answer, then see what is right.  What is not known comes back, until all are known.
"use strict";

function startCards() {
  let queue = shuffled(data.cards);
  let known = 0;
  let choices; // of the first card, in the order of the page

  function begin() {
    const card = queue[0];
    byId("card-count").textContent = card
      ? `${known} of ${data.cards.length} known`
      : `All ${data.cards.length} known. They begin again whenever you like.`;
    byId("card-question").replaceChildren(...typeset(card ? card.question : ""));
    choices = card ? shuffled([card.right, ...card.wrong]) : [];
    byId("card-choices").replaceChildren(...choices.map(choiceButton));
    byId("card-answer").hidden = byId("card-known").hidden = byId("card-again").hidden = true;
    byId("card-show").hidden = Boolean(card);
    verdict("card-verdict", "");
  }

  function choiceButton(text) {
    const button = element("button", { type: "button" }, ...typeset(text));
    button.addEventListener("click", () => commit(text));
    return button;
  }

  // The choices stay, without their buttons: what was chosen, and what is right.
  function commit(chosen) {
    const { right } = queue[0];
    const shown = choices.map((text) => {
      const mark = text === right ? "✓ " : text === chosen ? "✗ " : "";
      return element("p", text === right ? { class: "right" } : {}, mark, ...typeset(text));
    });
    byId("card-choices").replaceChildren(...shown);
    verdict("card-verdict", chosen === right ? "Right." : "Not this one.", chosen === right ? "good" : "bad");
    reveal(chosen === right);
  }

  function reveal(wasRight) {
    const places = element("ul");
    for (const [file, name] of queue[0].places) {
      places.append(element("li", {}, sourceLink(file, name), " in ", sourceLink(file)));
    }
    byId("card-answer").replaceChildren(element("p", {}, ...typeset(queue[0].answer.join(" "))), places);
    byId("card-answer").hidden = byId("card-again").hidden = false;
    byId("card-known").hidden = !wasRight;
    byId(wasRight ? "card-known" : "card-again").focus({ preventScroll: true }); // the button that had it is gone
  }

  function next(wasKnown) {
    const card = queue.shift();
    if (wasKnown) known += 1;
    else queue.push(card);
    begin();
    (byId("card-choices").firstChild ?? byId("card-show")).focus({ preventScroll: true });
  }

  byId("card-show").addEventListener("click", () => {
    queue = shuffled(data.cards);
    known = 0;
    begin();
    byId("card-choices").firstChild.focus({ preventScroll: true });
  });
  byId("card-known").addEventListener("click", () => next(true));
  byId("card-again").addEventListener("click", () => next(false));
  begin();
}

// Flashcards: what is not known comes back, until all are known.
"use strict";

function startCards() {
  let queue = shuffled(data.cards);
  let known = 0;

  function begin() {
    const card = queue[0];
    byId("card-count").textContent = card
      ? `${known} of ${data.cards.length} known`
      : `All ${data.cards.length} known. They begin again whenever you like.`;
    byId("card-question").replaceChildren(...typeset(card ? card.question : ""));
    byId("card-answer").hidden = byId("card-known").hidden = byId("card-again").hidden = true;
    byId("card-show").hidden = false;
    byId("card-show").textContent = card ? "Show the answer" : "Begin again";
  }

  function reveal() {
    const places = element("ul");
    for (const [file, name] of queue[0].places) {
      places.append(element("li", {}, sourceLink(file, name), " in ", sourceLink(file)));
    }
    byId("card-answer").replaceChildren(element("p", {}, ...typeset(queue[0].answer.join(" "))), places);
    byId("card-answer").hidden = byId("card-known").hidden = byId("card-again").hidden = false;
    byId("card-show").hidden = true;
    byId("card-known").focus({ preventScroll: true }); // the button that had it is gone
  }

  function next(wasKnown) {
    const card = queue.shift();
    if (wasKnown) known += 1;
    else queue.push(card);
    begin();
    byId("card-show").focus({ preventScroll: true });
  }

  byId("card-show").addEventListener("click", () => {
    if (queue.length) return reveal();
    queue = shuffled(data.cards);
    known = 0;
    begin();
  });
  byId("card-known").addEventListener("click", () => next(true));
  byId("card-again").addEventListener("click", () => next(false));
  begin();
}

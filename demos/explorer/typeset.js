// The code's own names, set as the papers write them: x_0_hat, alpha_bar_t, beta_tilde, sqrt(...).
"use strict";

const LETTERS = { x: "x", eps: "ε", alpha: "α", beta: "β" };
const MARKS = { hat: "\u0302", bar: "\u0304", tilde: "\u0303" };
const SYMBOL = /\b((?:x|eps|alpha|beta)(?:_(?:hat|bar|tilde|[0tsTuc]))*)\b/;

// A text as the nodes to append.
function typeset(text) {
  const plain = text.replaceAll("sqrt(", "√(").replaceAll(" - ", " − ");
  return plain.split(SYMBOL).map((part, i) => (i % 2 ? symbol(part) : part)); // every other part is a symbol
}

function symbol(name) {
  const [base, ...parts] = name.split("_");
  const marks = parts.map((part) => MARKS[part] ?? "").join("");
  const index = parts.filter((part) => !(part in MARKS)).join("");
  const letter = element("var", {}, LETTERS[base] + marks);
  if (!index) return letter;
  const below = index === "0" ? index : element("var", {}, index); // letters slant, digits stand
  return element("span", { class: "symbol" }, letter, element("sub", {}, below));
}

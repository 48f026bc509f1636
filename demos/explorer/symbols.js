// A symbol of an equation that is pointed at, or reached by Tab, lights what it stands for in the panel below.
"use strict";

function startSymbols() {
  for (const symbol of document.querySelectorAll("[data-lights]")) {
    const light = (on) => () => {
      for (const part of document.querySelectorAll(symbol.dataset.lights)) part.classList.toggle("lit", on);
    };
    symbol.setAttribute("tabindex", "0");
    for (const name of ["pointerenter", "focus"]) symbol.addEventListener(name, light(true));
    for (const name of ["pointerleave", "blur"]) symbol.addEventListener(name, light(false));
  }
}

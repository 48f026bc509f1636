// Dark or light: as the system has it, until the button says otherwise.
"use strict";

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
const chosenTheme = document.documentElement.dataset;
const isDark = () => (chosenTheme.theme ? chosenTheme.theme === "dark" : systemTheme.matches);

function startTheme() {
  const button = byId("theme");
  const name = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    document.dispatchEvent(new Event("theme")); // for what is painted, not styled
  };
  button.addEventListener("click", () => {
    chosenTheme.theme = isDark() ? "light" : "dark";
    name();
  });
  systemTheme.addEventListener("change", name);
  name();
}

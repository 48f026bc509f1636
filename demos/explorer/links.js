// Names of functions and files of the source become links to the files beside this page in the repository.
"use strict";

const sourceLink = (file, name = file) =>
  element("a", { href: `${data.root}/${file}`.replace(/^\.\//, "") }, element("code", {}, name));

// In a line such as "f and g in file.py; h in other.py" each name belongs to the file that follows it.
function startLinks() {
  for (const line of document.querySelectorAll(".source")) {
    let waiting = [];
    for (const code of line.querySelectorAll("code")) {
      waiting.push(code);
      const file = code.textContent;
      if (!file.endsWith(".py")) continue;
      for (const each of waiting) each.replaceWith(sourceLink(file, each.textContent));
      waiting = [];
    }
  }
}

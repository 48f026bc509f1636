// Starts every section, and says where all this comes from.
"use strict";

byId("about").textContent = `The network: ${data.about}`;
byId("made").textContent = `Made by demos/explorer.py of tinydiff from ${data.about}`;
startTheme();
startForward();
startReverse();
startPoints();
startMistakes();
startOrder();
startGuess();
startCards();

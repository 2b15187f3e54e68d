// The canvas as tokens: one element a position, made once; a step changes what they show.

const tokensBox = document.getElementById("tokens");
const tokens = Array.from({ length: positions }, (_, position) => {
  const token = make("span", "token");
  token.dataset.position = position;
  token.tabIndex = position === 0 ? 0 : -1; // Tab enters the canvas once, arrows move along it
  return token;
});

function drawTokens() {
  const shown = ids[state.ids];
  tokens.forEach((token, position) => {
    const index = at(state.step, position);
    const id = shown[index];
    paint(token, visible(id), entropy[index], scale, {
      behind: isBehind(state.step, position, id),
      open: !accepted[index] && !clamped[index],
      clamped: Boolean(clamped[index]),
      settled: isSettled(state.step, position),
      breaks: breaksLine(id),
      special: isSpecial(id),
    });
    token.classList.toggle("same", position === state.position);
  });
}

function focusToken(position) {
  const place = Math.min(Math.max(position, 0), positions - 1);
  for (const token of tokens) token.tabIndex = -1;
  tokens[place].tabIndex = 0;
  tokens[place].focus();
}

// The position of the token an event happened on, or null.
function positionOf(event) {
  const token = event.target.closest?.(".token");
  return token ? Number(token.dataset.position) : null;
}

function setUpTokens() {
  for (const token of tokens) tokensBox.append(token, make("br")); // the break shows after a newline token only
  const lengths = [...pieces.values()].filter((piece) => !/^<.+>$/.test(piece)).map((piece) => piece.length);
  lengths.sort((a, b) => a - b);
  const typical = lengths[Math.floor(0.9 * lengths.length)] ?? 6;
  tokensBox.style.setProperty("--cell", `${Math.min(Math.max(typical + 1, 2), 9)}ch`);
  tokensBox.addEventListener("mouseover", (event) => {
    const position = positionOf(event);
    if (position !== null) point(state.step, position, tokens[position].getBoundingClientRect());
  });
  tokensBox.addEventListener("mouseleave", unpoint);
  tokensBox.addEventListener("focusin", (event) => {
    const position = positionOf(event);
    if (position !== null) point(state.step, position, tokens[position].getBoundingClientRect());
  });
  tokensBox.addEventListener("focusout", unpoint);
}

// One token of a canvas: its colour is its entropy, its marks are what became of it.

import { css, heatColour, inkOn, level, palette } from "./colour.js";

// Shows a token: `text` without newlines, entropy in nats, and whether it is behind the text's end, renoised, clamped, settled.
export function paint(token, text, nats, scale, { behind, open, clamped, settled, breaks, special }) {
  const colour = heatColour(level(nats, scale));
  token.textContent = behind ? "·" : text;
  token.style.background = behind ? palette.paper : css(colour);
  token.style.color = behind ? palette.muted : inkOn(colour);
  token.classList.toggle("behind", behind);
  token.classList.toggle("open", !behind && open);
  token.classList.toggle("clamped", clamped);
  token.classList.toggle("settled", !behind && Boolean(settled));
  token.classList.toggle("breaks", !behind && breaks);
  token.classList.toggle("special", !behind && special);
}

// Entropy as colour, in the page's light or dark palette: the same for every run, and with the marks of --watch.

export let palette = readPalette();

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["paper", "ink", "muted", "line", "accent", "clamp", "rejected", "settled"];
  return {
    ...Object.fromEntries(names.map((name) => [name, colour(name)])),
    heat: [0, 1, 2, 3, 4].map((i) => rgb(colour(`heat-${i}`))),
  };
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// After the page turned light or dark.
export function refreshPalette() {
  palette = readPalette();
}

// Where on a scale an entropy in nats lies, 0 … 1, its marks being equally far apart; NaN stays NaN.
export function level(nats, scale) {
  if (Number.isNaN(nats)) return NaN;
  const above = scale.findIndex((mark) => nats < mark);
  if (above <= 0) return above === 0 ? 0 : 1;
  const [low, high] = [scale[above - 1], scale[above]];
  return (above - 1 + (nats - low) / (high - low)) / (scale.length - 1);
}

export function heatColour(value) {
  if (Number.isNaN(value)) return [128, 128, 128];
  const place = value * (palette.heat.length - 1);
  const i = Math.min(Math.floor(place), palette.heat.length - 2);
  return palette.heat[i].map((part, c) => Math.round(part + (palette.heat[i + 1][c] - part) * (place - i)));
}

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

function luminance(colour) {
  const [r, g, b] = colour.map((part) => (part / 255 <= 0.04045 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever is easier to read on a colour.
export const inkOn = (colour) => (luminance(colour) > 0.179 ? "#000000" : "#ffffff");

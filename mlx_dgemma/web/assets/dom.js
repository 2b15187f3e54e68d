// Elements, and figures in words.

// A number with its leading digits, small ones as powers of ten.
export function short(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "not a number";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(1).replace("e-", "e−") : String(Number(value.toPrecision(digits)));
}

export function duration(seconds) {
  return seconds < 1 ? `${short(1000 * seconds)} ms` : `${short(seconds)} s`;
}

// Elements are made here, and text goes in as text only.
export function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

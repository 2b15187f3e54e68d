// The trace as typed arrays, what is shown of it, and words for it. Arrays are flat: see `at`.

const trace = JSON.parse(document.getElementById("trace").textContent);
const { steps, rows, positions, series } = trace;
const pieces = new Map(trace.pieces);

// What is on the page: `step` among lo … hi (one canvas or all), the sample, and the position pointed at.
const state = { step: 0, row: 0, lo: 0, hi: steps - 1, ids: "draft", heat: "entropy", position: null };

function bytes(encoded) {
  const text = atob(encoded);
  const result = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) result[i] = text.charCodeAt(i);
  return result;
}

const ids = {
  canvas: new Int32Array(bytes(trace.arrays.canvas).buffer),
  draft: new Int32Array(bytes(trace.arrays.draft).buffer),
};
const entropy = new Float32Array(bytes(trace.arrays.entropy).buffer); // nats
const accepted = bytes(trace.arrays.accepted);
const clamped = bytes(trace.arrays.clamped);
const anyClamped = clamped.includes(1);
const maxEntropy = entropy.reduce((most, h) => (h > most && h < Infinity ? h : most), 1e-3);

// Where a step's position is in the arrays, for the sample on show.
const at = (step, position) => (step * rows + state.row) * positions + position;

// First and last step of every canvas.
const canvases = [];
series.canvas_index.forEach((index, step) => {
  const last = canvases[canvases.length - 1];
  if (last && last.index === index) last.hi = step;
  else canvases.push({ index, lo: step, hi: step });
});
const canvasOf = (step) => canvases.find((canvas) => step <= canvas.hi);

const INVISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u2028": "↵", "\u2029": "↵" };

// A token's text with what cannot be seen made visible; its id where the trace has no text.
function visible(id) {
  const piece = pieces.get(id);
  if (piece === undefined) return `${id} `;
  return piece.replace(/[\u0000-\u001f\u007f-\u009f\u200b\u2028\u2029\ufeff]/g, (c) => INVISIBLE[c] ?? "␣");
}

const breaksLine = (id) => /\n/.test(pieces.get(id) ?? "");
const isSpecial = (id) => /^<.+>$/.test(pieces.get(id) ?? "");

// A number with its leading digits, small ones as powers of ten.
function short(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "not a number";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(1).replace("e-", "e−") : String(Number(value.toPrecision(digits)));
}

function duration(seconds) {
  return seconds < 1 ? `${short(1000 * seconds)} ms` : `${short(seconds)} s`;
}

// Elements are made here, and text goes in as text only.
function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// The trace as typed arrays, what is shown of it, and words for it. Arrays are flat: see `at`.

const trace = JSON.parse(document.getElementById("trace").textContent);
const { steps, rows, positions, series, scale } = trace; // scale: the nats at which the palette has its colours
const pieces = new Map(trace.pieces);

// What is on the page: `step` among lo … hi (one canvas or all), the sample, and the position pointed at. It opens on the
// last step, which is what the text and the summary below are of.
const state = { step: steps - 1, row: 0, lo: 0, hi: steps - 1, ids: "draft", heat: "entropy", position: null };

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
const computed = bytes(trace.arrays.computed); // by step and position, for all samples
const anySettled = computed.includes(0);

// Where a step's position is in the arrays, for the sample on show.
const at = (step, position) => (step * rows + state.row) * positions + position;

// Whether a position was accepted before and not computed again.
const isSettled = (step, position) => !computed[step * positions + position] && Boolean(accepted[at(step, position)]);

// First and last step of every canvas.
const canvases = [];
series.canvas_index.forEach((index, step) => {
  const last = canvases[canvases.length - 1];
  if (last && last.index === index) last.hi = step;
  else canvases.push({ index, lo: step, hi: step });
});
const canvasOf = (step) => canvases.find((canvas) => step <= canvas.hi);

// A token's text, in which nothing but newlines needs a picture any more; its id where the trace has no text.
function visible(id) {
  const piece = pieces.get(id);
  return piece === undefined ? `${id} ` : piece.replaceAll("\n", "↵");
}

// Whether a position holds nothing to read at a step: padding, or what the draft has behind the end of its text.
function isBehind(step, position, id) {
  return pieces.get(id) === "<pad>" || (state.ids === "draft" && position > trace.ends[step * rows + state.row]);
}

const breaksLine = (id) => /\n/.test(pieces.get(id) ?? "");
const isSpecial = (id) => /^<.+>$/.test(pieces.get(id) ?? "");

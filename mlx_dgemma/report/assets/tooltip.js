// What a position is now and was at every step of its canvas.

const tooltip = document.getElementById("tooltip");
const RUNS = 8; // lines of history at most
const SPARK = { width: 250, height: 42 };

// Shows the tooltip for a position at a step, beside a rectangle of the window, and marks the position everywhere.
function point(step, position, beside) {
  state.position = position;
  tooltip.replaceChildren(...describe(step, position));
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const below = beside.bottom + 8 + box.height <= innerHeight;
  const top = below ? beside.bottom + 8 : Math.max(beside.top - box.height - 8, 4);
  const left = Math.min(Math.max(beside.left - 12, 8), innerWidth - box.width - 8);
  tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  markPosition();
}

function unpoint() {
  if (tooltip.hidden) return;
  tooltip.hidden = true;
  state.position = null;
  markPosition();
}

function markPosition() {
  tokens.forEach((token, position) => token.classList.toggle("same", position === state.position));
  drawHeat();
}

function describe(step, position) {
  const index = at(step, position);
  const canvas = canvasOf(step);
  const facts = make("dl");
  const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  fact("token id", String(ids.draft[index]));
  fact("entropy", `${short(entropy[index])} nats`);
  const behind = isBehind(step, position, ids.draft[index]) ? ", behind the end" : "";
  const became = isSettled(step, position) ? "settled, not computed" : accepted[index] ? "accepted" : "not accepted, renoised";
  fact("state", (clamped[index] ? "clamped" : became) + behind);
  fact("before", `${visible(ids.canvas[index])} (${ids.canvas[index]})`);
  const where = `position ${position} · canvas ${canvas.index + 1} · step ${series.step[step]}`;
  const name = make("div", "name", visible(ids.draft[index]));
  return [name, make("div", "where", where), facts, sparkline(canvas, step, position), history(canvas, step, position)];
}

// Entropy of the position over its canvas's steps; a dot where it was accepted.
function sparkline(canvas, step, position) {
  const { width, height } = SPARK;
  const count = canvas.hi - canvas.lo + 1;
  const x = (s) => ((s - canvas.lo + 0.5) / count) * width;
  const y = (s) => height - 4 - (level(entropy[at(s, position)], scale) || 0) * (height - 8);
  const picture = svg("svg", { width, height, role: "img", "aria-label": "entropy of this position by step" });
  picture.append(svg("line", { x1: 0, x2: width, y1: height - 4, y2: height - 4, stroke: palette.line }));
  picture.append(svg("line", { x1: x(step), x2: x(step), y1: 0, y2: height, stroke: palette.accent }));
  const points = [];
  for (let s = canvas.lo; s <= canvas.hi; s++) points.push(`${x(s).toFixed(1)},${y(s).toFixed(1)}`);
  picture.append(svg("polyline", { points: points.join(" "), fill: "none", stroke: palette.muted, "stroke-width": 1.5 }));
  for (let s = canvas.lo; s <= canvas.hi; s++) {
    const fill = accepted[at(s, position)] ? palette.ink : palette.paper;
    picture.append(svg("circle", { cx: x(s), cy: y(s), r: count > 24 ? 1.6 : 2.6, fill, stroke: palette.ink }));
  }
  return picture;
}

// The tokens the position had, equal neighbours joined, those around the step on show.
function history(canvas, step, position) {
  const runs = [];
  for (let s = canvas.lo; s <= canvas.hi; s++) {
    const id = ids.draft[at(s, position)];
    const last = runs[runs.length - 1];
    if (last && last.id === id) last.hi = s;
    else runs.push({ id, lo: s, hi: s });
  }
  const current = runs.findIndex((run) => step <= run.hi);
  const first = Math.max(Math.min(current - RUNS / 2, runs.length - RUNS), 0);
  const list = make("ol");
  const note = (count, words) => count > 0 && list.append(make("li", "", `… ${count} ${words}`));
  note(first, "before");
  runs.slice(first, first + RUNS).forEach((run, i) => {
    const [lo, hi] = [series.step[run.lo], series.step[run.hi]];
    const line = make("li", first + i === current ? "now" : "");
    line.append(make("span", "", lo === hi ? `step ${lo}` : `steps ${lo}–${hi}`), make("b", "", visible(run.id)));
    list.append(line);
  });
  note(runs.length - first - RUNS, "after");
  return list;
}

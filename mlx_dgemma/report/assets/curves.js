// Curves by step, under the heat map and on its step axis: accepted count, mean entropy, temperature.

const curves = document.getElementById("curves");
const PANEL = { height: 104, top: 20, bottom: 8, axis: 30 };
let cursors = []; // of every panel: its line, its dot, and the dot's height by step

const total = rows > 1 ? ` over ${rows} samples` : "";
const PANELS = [
  { name: `accepted positions${total}`, values: series.accepted_count, domain: [0, positions * rows], log: false },
  { name: "mean entropy, nats (log)", values: series.mean_entropy, log: true, line: trace.confidence_threshold },
  { name: "temperature", values: series.temperature, log: false },
];
if (anySettled) PANELS.push({ name: `computed positions${total}`, values: series.rows, domain: [0, positions * rows], log: false });

// Lowest and highest value of an axis; a log axis runs over whole powers of ten.
function domainOf(panel) {
  if (panel.domain) return panel.domain;
  const finite = panel.values.filter((v) => v !== null && (!panel.log || v > 0));
  if (panel.log) {
    const shown = panel.line ? [...finite, panel.line] : finite;
    const [low, high] = [Math.min(...shown), Math.max(...shown)];
    const floor = 10 ** Math.max(Math.floor(Math.log10(low)), -8);
    return [floor, Math.max(10 ** Math.ceil(Math.log10(high)), 10 * floor)];
  }
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const room = (high - low || Math.abs(high) || 1) * 0.1;
  return [Math.max(low - room, 0), high + room];
}

function ticksOf(panel, [low, high]) {
  if (panel.log) {
    const decades = Math.round(Math.log10(high / low));
    const every = Math.ceil(decades / 4);
    return Array.from({ length: Math.floor(decades / every) + 1 }, (_, i) => low * 10 ** (i * every));
  }
  const raw = (high - low) / 3;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const gap = panel.domain ? high / 4 : unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw);
  const first = Math.ceil(low / gap - 1e-9);
  return Array.from({ length: Math.floor(high / gap + 1e-9) - first + 1 }, (_, i) => (first + i) * gap);
}

function drawCurves() {
  const { width, plot } = heatSize();
  cursors = [];
  const height = PANELS.length * PANEL.height + PANEL.axis;
  const picture = svg("svg", { width, height, role: "img", "aria-label": "Curves of accepted positions, mean entropy and temperature by step" });
  PANELS.forEach((panel, i) => picture.append(drawPanel(panel, i * PANEL.height, plot)));
  picture.append(drawStepAxis(PANELS.length * PANEL.height, plot));
  curves.replaceChildren(picture);
  moveCursors();
}

const stepX = (step, plot) => MARGIN.left + ((step - state.lo + 0.5) / (state.hi - state.lo + 1)) * plot;

function drawPanel(panel, top, plot) {
  const domain = domainOf(panel);
  const scale = panel.log ? Math.log10 : (value) => value;
  const [low, high] = domain.map(scale);
  const [upper, lower] = [top + PANEL.top, top + PANEL.height - PANEL.bottom];
  const y = (value) => lower - ((scale(Math.min(Math.max(value, domain[0]), domain[1])) - low) / (high - low)) * (lower - upper);
  const right = MARGIN.left + plot;
  const group = svg("g", {});
  group.append(svg("text", { x: MARGIN.left, y: top + 12 }, panel.name));
  for (const tick of ticksOf(panel, domain)) {
    group.append(svg("line", { x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick), stroke: palette.line }));
    group.append(svg("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, panel.log ? power(tick) : short(tick)));
  }
  if (panel.line) {
    const at = y(panel.line);
    group.append(svg("line", { x1: MARGIN.left, x2: right, y1: at, y2: at, stroke: palette.muted, "stroke-dasharray": "4 3" }));
    const words = `┄ ${plot > 400 ? "confidence " : ""}threshold ${short(panel.line)}`;
    group.append(svg("text", { x: right, y: top + 12, "text-anchor": "end" }, words));
  }
  for (const canvas of canvases) drawLine(group, panel, canvas, y, plot, [upper, lower]);
  const line = svg("line", { y1: upper, y2: lower, stroke: palette.accent, "stroke-width": 1.5 });
  const dot = svg("circle", { r: 3.5, fill: palette.accent, stroke: palette.paper });
  cursors.push({ line, dot, y: (step) => (panel.values[step] === null ? null : y(panel.values[step])) });
  group.append(line, dot);
  return group;
}

// One canvas's part of a curve, and the boundary before it.
function drawLine(group, panel, canvas, y, plot, [upper, lower]) {
  if (canvas.hi < state.lo || canvas.lo > state.hi) return;
  const points = [];
  for (let step = canvas.lo; step <= canvas.hi; step++) {
    if (panel.values[step] !== null) points.push([stepX(step, plot).toFixed(1), y(panel.values[step]).toFixed(1)]);
  }
  const path = points.map((pair) => pair.join(",")).join(" ");
  group.append(svg("polyline", { points: path, fill: "none", stroke: palette.ink, "stroke-width": 1.5 }));
  if (state.hi - state.lo < 100) {
    for (const [cx, cy] of points) group.append(svg("circle", { cx, cy, r: 2, fill: palette.ink }));
  }
  if (canvas.lo > state.lo) {
    const x = stepX(canvas.lo - 0.5, plot);
    group.append(svg("line", { x1: x, x2: x, y1: upper, y2: lower, stroke: palette.muted }));
  }
}

const power = (value) => (value >= 0.01 && value <= 100 ? short(value) : `1e${Math.round(Math.log10(value))}`.replace("-", "−"));

function drawStepAxis(top, plot) {
  const group = svg("g", {});
  const one = state.lo === state.hi || canvasOf(state.lo) === canvasOf(state.hi);
  const number = (step) => (one ? series.step[step] : step + 1);
  const room = Math.max(Math.ceil((state.hi - state.lo + 1) / (plot / 44)), 1);
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((gap) => gap >= room) ?? room;
  for (let step = state.lo; step <= state.hi; step++) {
    if (number(step) !== 1 && number(step) % every) continue;
    if (number(step) === 1 && every > 1 && step !== state.lo) continue;
    group.append(svg("text", { x: stepX(step, plot), y: top + 10, "text-anchor": "middle" }, String(number(step))));
  }
  const words = one ? `denoising step of canvas ${canvasOf(state.lo).index + 1}` : "denoising step, all canvases";
  group.append(svg("text", { x: MARGIN.left + plot / 2, y: top + 26, "text-anchor": "middle" }, words));
  return group;
}

function moveCursors() {
  const x = stepX(state.step, heatSize().plot);
  for (const { line, dot, y } of cursors) {
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    const height = y(state.step);
    dot.setAttribute("visibility", height === null ? "hidden" : "visible");
    if (height !== null) {
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", height);
    }
  }
}

function setUpCurves() {
  curves.addEventListener("click", (event) => {
    const across = (event.clientX - curves.getBoundingClientRect().left - MARGIN.left) / heatSize().plot;
    if (across >= 0 && across < 1) goTo(state.lo + Math.floor(across * (state.hi - state.lo + 1)));
  });
}

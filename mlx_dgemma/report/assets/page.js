// Going from step to step: slider, buttons, keys, playing; and drawing what a change touches.

const byId = (id) => document.getElementById(id);
const [slider, play, which, speed, sample] = ["step", "play", "which", "speed", "sample"].map(byId);
let timer = null;
let addressTimer = null;

function goTo(step) {
  const before = state.step;
  state.step = Math.min(Math.max(step, state.lo), state.hi);
  if (state.step !== before) noteStep();
  drawStep();
}

// Puts the step into the address, counted from 1 over all canvases: run.html#step=7. Late, as browsers allow few changes.
function noteStep() {
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    try {
      window.history.replaceState(null, "", `#step=${state.step + 1}`);
    } catch {
      // a page inside another one may have no address of its own
    }
  }, 400);
}

function goToAddress() {
  const match = /^#step=(\d+)$/.exec(location.hash);
  if (!match) return;
  const step = Math.min(Math.max(Number(match[1]), 1), steps) - 1;
  if (step < state.lo || step > state.hi) {
    which.value = "all";
    showRange(0, steps - 1);
  }
  goTo(step);
}

function drawStep() {
  const step = state.step;
  slider.value = step;
  const canvas = canvasOf(step);
  slider.setAttribute("aria-valuetext", `canvas ${canvas.index + 1}, step ${series.step[step]}`);
  drawTokens();
  drawHeat();
  moveCursors();
  drawReadout(canvas);
  byId("segments").childNodes.forEach((segment) => segment.classList.toggle("current", segment.dataset.index == canvas.index));
  const focused = document.activeElement.closest(".token");
  if (focused) point(step, Number(focused.dataset.position), focused.getBoundingClientRect());
  else if (!tooltip.hidden && tokensBox.matches(":hover")) {
    point(step, state.position, tokens[state.position].getBoundingClientRect());
  }
}

function drawReadout(canvas) {
  const step = state.step;
  const figures = [
    ["canvas", `${canvas.index + 1} of ${canvases.length}`],
    ["step", `${series.step[step]} of ${canvas.hi - canvas.lo + 1} (${series.step[step] + series.remaining[step] - 1} at most)`],
    ["temperature", series.temperature[step].toFixed(3)],
    ["accepted", `${series.accepted_count[step]} of ${positions * rows}`],
    ...(anySettled ? [["computed", `${series.rows[step]} of ${positions * rows}`]] : []),
    ["mean entropy", `${short(series.mean_entropy[step])} nats`],
    ["time", duration(series.seconds[step])],
  ];
  byId("readout").replaceChildren(
    ...figures.map(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      return pair;
    }),
  );
}

// Shows one canvas, or all of them after one another.
function showRange(lo, hi) {
  Object.assign(state, { lo, hi });
  Object.assign(slider, { min: lo, max: hi });
  byId("segments").replaceChildren(
    ...canvases
      .filter((canvas) => canvas.hi >= lo && canvas.lo <= hi)
      .map((canvas) => {
        const segment = make("span");
        segment.dataset.index = canvas.index;
        segment.style.flex = canvas.hi - canvas.lo + 1;
        return segment;
      }),
  );
  redraw();
}

// After a change of range, sample, palette or width.
function redraw() {
  paintPicture();
  drawLegend();
  drawCurves();
  goTo(state.step);
}

function setPlaying(on) {
  clearTimeout(timer);
  timer = null;
  play.textContent = on ? "❚❚" : "▶";
  play.setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (state.step === state.hi) goTo(state.lo);
  scheduleNext();
}

function scheduleNext() {
  const next = Math.min(state.step + 1, state.hi);
  const wait = speed.value === "recorded" ? 1000 * series.seconds[next] : 1000 / Number(speed.value);
  timer = setTimeout(() => {
    goTo(state.step + 1);
    if (state.step === state.hi) setPlaying(false);
    else scheduleNext();
  }, wait);
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const { target, key } = event;
  if (target.matches("select, input[type=radio]")) return; // they have keys of their own
  const moves = { ArrowLeft: -1, ArrowRight: 1 };
  if (key in moves && target !== slider) goTo(state.step + moves[key]);
  else if (key === " " && target.tagName !== "BUTTON") setPlaying(timer === null);
  else if ((key === "ArrowUp" || key === "ArrowDown") && target.matches(".token")) {
    focusToken(Number(target.dataset.position) + (key === "ArrowUp" ? -1 : 1));
  } else if (key === "Escape") return unpoint();
  else return;
  event.preventDefault();
}

function setUpControls() {
  which.append(new Option("all canvases", "all"), ...canvases.map((c) => new Option(`canvas ${c.index + 1}`, c.index)));
  which.addEventListener("change", () => {
    const canvas = canvases.find((c) => String(c.index) === which.value);
    showRange(canvas ? canvas.lo : 0, canvas ? canvas.hi : steps - 1);
  });
  byId("samples").hidden = rows === 1;
  sample.append(...Array.from({ length: rows }, (_, row) => new Option(`sample ${row + 1}`, row)));
  sample.addEventListener("change", () => {
    state.row = Number(sample.value);
    redraw();
  });
  slider.addEventListener("input", () => goTo(Number(slider.value)));
  play.addEventListener("click", () => setPlaying(timer === null));
  byId("back").addEventListener("click", () => goTo(state.step - 1));
  byId("forth").addEventListener("click", () => goTo(state.step + 1));
  speed.addEventListener("change", () => timer !== null && setPlaying(true));
  document.addEventListener("keydown", onKey);
  onChoice("ids", (value) => { state.ids = value; drawTokens(); });
  onChoice("layout", (value) => { tokensBox.className = value; });
  onChoice("heat", (value) => { state.heat = value; redraw(); });
}

function onChoice(name, act) {
  for (const input of document.getElementsByName(name)) input.addEventListener("change", () => act(input.value));
}

byId("clamped-key").hidden = !anyClamped;
byId("settled-key").hidden = !anySettled;
setUpControls();
setUpTokens();
setUpHeat();
setUpCurves();
showRange(0, steps - 1);
goToAddress();
addEventListener("hashchange", goToAddress);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  refreshPalette();
  redraw();
});
let drawnWidth = curves.clientWidth;
new ResizeObserver(() => {
  if (curves.clientWidth === drawnWidth) return;
  drawnWidth = curves.clientWidth;
  redraw();
}).observe(curves);

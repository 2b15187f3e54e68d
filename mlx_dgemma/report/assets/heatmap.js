// The heat map: a column a step, a row a position. The picture is kept; a step draws it again with its frame.

const heat = document.getElementById("heat");
const MARGIN = { left: 44, right: 10, bottom: 4 };
let picture = null; // one pixel a cell

function heatSize() {
  const width = heat.parentElement.clientWidth;
  const cell = Math.min(Math.max(Math.round(384 / positions), 1), 12);
  return { width, height: positions * cell, plot: Math.max(width - MARGIN.left - MARGIN.right, 1) };
}

function paintPicture() {
  const count = state.hi - state.lo + 1;
  picture = document.createElement("canvas");
  picture.width = count;
  picture.height = positions;
  const image = new ImageData(count, positions);
  const [yes, no, held, rests] = ["accent", "rejected", "clamp", "settled"].map((name) => rgb(palette[name]));
  for (let column = 0; column < count; column++) {
    for (let position = 0; position < positions; position++) {
      const index = at(state.lo + column, position);
      const became = clamped[index] ? held : isSettled(state.lo + column, position) ? rests : accepted[index] ? yes : no;
      const colour = state.heat === "entropy" ? heatColour(level(entropy[index], scale)) : became;
      image.data.set([...colour, 255], 4 * (position * count + column));
    }
  }
  picture.getContext("2d").putImageData(image, 0, 0);
  heat.setAttribute(
    "aria-label",
    `Heat map of ${state.heat} by step (across, ${count}) and position (down, ${positions}); click to go to a step`,
  );
}

function drawHeat() {
  if (!picture) paintPicture();
  const { width, height, plot } = heatSize();
  const scale = window.devicePixelRatio || 1;
  heat.width = Math.round(width * scale);
  heat.height = Math.round((height + MARGIN.bottom) * scale);
  heat.style.width = `${width}px`;
  heat.style.height = `${height + MARGIN.bottom}px`;
  const draw = heat.getContext("2d");
  draw.scale(scale, scale);
  draw.imageSmoothingEnabled = plot * scale < picture.width; // blur only where columns are narrower than pixels
  draw.drawImage(picture, MARGIN.left, 0, plot, height);
  drawHeatAxes(draw, height, plot);
  drawHeatMarks(draw, height, plot);
}

function drawHeatAxes(draw, height, plot) {
  draw.strokeStyle = palette.line;
  draw.strokeRect(MARGIN.left - 0.5, 0.5, plot + 1, height - 1);
  draw.fillStyle = palette.muted;
  draw.font = "11px system-ui, sans-serif";
  draw.textAlign = "right";
  const every = 2 ** Math.ceil(Math.log2(positions / 8));
  for (let position = 0; position < positions; position += every) {
    draw.textBaseline = position === 0 ? "top" : "middle";
    draw.fillText(String(position), MARGIN.left - 6, ((position + (position ? 0.5 : 0)) / positions) * height);
  }
  draw.save();
  draw.translate(9, height / 2);
  draw.rotate(-Math.PI / 2);
  draw.textAlign = "center";
  draw.textBaseline = "middle";
  draw.fillText("position", 0, 0);
  draw.restore();
}

function drawHeatMarks(draw, height, plot) {
  const count = state.hi - state.lo + 1;
  const x = (step) => MARGIN.left + ((step - state.lo) / count) * plot;
  draw.strokeStyle = palette.muted;
  for (const canvas of canvases) {
    if (canvas.lo <= state.lo || canvas.lo > state.hi) continue;
    draw.beginPath();
    draw.moveTo(x(canvas.lo), 0);
    draw.lineTo(x(canvas.lo), height);
    draw.stroke();
  }
  draw.fillStyle = palette.clamp;
  for (let position = 0; anyClamped && position < positions; position++) {
    if (!clamped[at(state.step, position)]) continue;
    draw.fillRect(MARGIN.left - 4, (position / positions) * height, 3, Math.max(height / positions, 1));
  }
  draw.lineWidth = 2;
  draw.strokeStyle = palette.paper;
  draw.strokeRect(x(state.step) - 1, 1, plot / count + 2, height - 2);
  draw.strokeStyle = palette.accent;
  draw.strokeRect(x(state.step), 1, Math.max(plot / count, 2), height - 2);
  if (state.position === null) return;
  draw.lineWidth = 1;
  draw.strokeStyle = palette.accent;
  draw.strokeRect(MARGIN.left, (state.position / positions) * height, plot, Math.max(height / positions, 1));
}

// The step and position under the pointer; null outside of the picture.
function cellUnder(event) {
  const box = heat.getBoundingClientRect();
  const { height, plot } = heatSize();
  const across = (event.clientX - box.left - MARGIN.left) / plot;
  const down = (event.clientY - box.top) / height;
  if (across < 0 || across >= 1 || down < 0 || down >= 1) return null;
  const step = state.lo + Math.floor(across * (state.hi - state.lo + 1));
  return { step, position: Math.floor(down * positions) };
}

function setUpHeat() {
  heat.addEventListener("mousemove", (event) => {
    const cell = cellUnder(event);
    if (!cell) return unpoint();
    const { clientX, clientY } = event;
    point(cell.step, cell.position, { left: clientX + 24, top: clientY - 8, bottom: clientY + 12 });
  });
  heat.addEventListener("mouseleave", unpoint);
  heat.addEventListener("click", (event) => {
    const cell = cellUnder(event);
    if (cell) goTo(cell.step);
  });
}

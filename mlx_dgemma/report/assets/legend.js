// What the heat map's colours mean.

function drawLegend() {
  const legend = document.getElementById("legend");
  legend.replaceChildren();
  if (state.heat === "entropy") legend.append(ramp());
  else {
    legend.append(swatch(palette.accent, "accepted"), swatch(palette.rejected, "not accepted, renoised"));
  }
  if (anyClamped) legend.append(swatch(palette.clamp, "clamped"));
  if (anySettled && state.heat === "acceptance") legend.append(swatch(palette.settled, "settled, not computed"));
}

function swatch(colour, text) {
  const item = make("span");
  const patch = make("span", "swatch");
  patch.style.background = colour;
  item.append(patch, text);
  return item;
}

function ramp() {
  const box = make("div", "ramp");
  const bar = make("i");
  const stops = Array.from({ length: 17 }, (_, i) => css(heatColour(i / 16)));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  box.append(bar);
  scale.forEach((nats, i) => {
    const isLast = i === scale.length - 1;
    const label = tick(i / (scale.length - 1), isLast ? `≥ ${nats} nats` : String(nats));
    if (isLast) label.className = "last";
    box.append(label);
  });
  return box;
}

function tick(place, text) {
  const label = make("span", "", text);
  label.style.left = `${100 * place}%`;
  return label;
}

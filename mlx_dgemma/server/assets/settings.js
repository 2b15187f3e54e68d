// The settings panel: what it holds is kept, checked when it closes, and becomes fields of a request.

import { save, state } from "./store.js";

const NUMBERS = { seed: "seed", length: "number of tokens", steps: "number of steps" };
const MOST = Number.MAX_SAFE_INTEGER;
const panel = document.getElementById("panel");
const form = panel.querySelector("form");
const note = document.getElementById("panel-note");

export function open() {
  for (const field of form.elements) {
    if (!field.name) continue;
    const value = state.settings[field.name];
    if (field.type === "checkbox") field.checked = value ?? field.name === "canvas";
    else field.value = value ?? "";
  }
  note.hidden = true;
  panel.showModal();
}

// What the fields say, or the first thing that is wrong with it.
function problem(values) {
  for (const [name, words] of Object.entries(NUMBERS)) {
    const least = name === "seed" ? 0 : 1;
    if (values[name] && !(/^\d+$/.test(values[name]) && values[name] >= least && values[name] <= MOST)) {
      return `The ${words} must be a whole number from ${least} on.`;
    }
  }
  for (const [name, words, isRight] of [
    ["tools", "Tools must be a JSON list.", Array.isArray],
    ["schema", "The schema must be a JSON object.", (value) => value && typeof value === "object" && !Array.isArray(value)],
  ]) {
    if (!values[name].trim()) continue;
    try {
      if (!isRight(JSON.parse(values[name]))) return words;
    } catch {
      return words;
    }
  }
  return "";
}

form.addEventListener("submit", (event) => {
  const values = {};
  for (const field of form.elements) {
    if (field.name) values[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  const wrong = problem(values);
  note.hidden = !wrong;
  note.textContent = wrong;
  if (wrong) {
    event.preventDefault();
    return;
  }
  state.settings = values;
  const full = save();
  if (full) {
    note.textContent = full;
    note.hidden = false;
    event.preventDefault();
  }
});

export const showsCanvas = () => state.settings.canvas ?? true;

// The fields of a request, beside its messages.
export function fields() {
  const own = state.settings;
  const body = { diffusion: {} };
  if (showsCanvas()) body.diffusion.drafts = "tokens";
  if (own.steps) body.diffusion.max_denoising_steps = Number(own.steps);
  if (own.image_tokens) body.diffusion.image_tokens = Number(own.image_tokens);
  if (own.thinking) body.reasoning_effort = "medium";
  if (own.length) body.max_completion_tokens = Number(own.length);
  if (own.temperature) body.temperature = Number(own.temperature);
  const stops = (own.stop ?? "").split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (own.tools?.trim()) body.tools = JSON.parse(own.tools);
  if (own.schema?.trim()) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(own.schema) } };
  }
  body.seed = own.seed ? Number(own.seed) : Math.floor(Math.random() * 2 ** 31);
  return body;
}

export const systemText = () => state.settings.system?.trim() ?? "";

// Turns of a conversation as elements: what the user wrote, and an answer while it grows.

import { CanvasView } from "./canvas.js";
import { make, short } from "./dom.js";
import { thumbnail } from "./images.js";
import { markdown } from "./markdown.js";
import { image } from "./store.js";

export function userTurn(message, actions) {
  const turn = make("article", "turn user");
  turn.setAttribute("aria-label", message.role === "tool" ? "Result of a call" : "You");
  if (message.role === "tool") turn.append(make("p", "quiet", "Result of a call"));
  if (message.images) turn.append(thumbnails(message.images));
  if (message.content) turn.append(make("div", "said", message.content));
  turn.append(actionsOf(actions));
  return turn;
}

function thumbnails(names) {
  const box = make("div", "thumbnails");
  names.forEach(async (name, at) => {
    const shown = thumbnail("", at);
    box.append(shown);
    const url = await image(name);
    if (url) shown.src = url;
    else shown.alt = `Image ${at + 1} is gone`;
  });
  return box;
}

export class AnswerTurn {
  constructor(message) {
    this.message = message;
    this.element = make("article", "turn answer");
    this.element.setAttribute("aria-label", "Answer");
    this.thought = make("details", "thought");
    this.thought.append(make("summary", "", "Thought"), make("div", "said"));
    this.body = make("div", "markdown");
    this.calls = make("div", "calls");
    this.canvas = new CanvasView();
    this.foot = make("p", "foot quiet");
    this.element.append(this.thought, this.body, this.calls, this.canvas.element, this.foot);
    this.draw();
  }

  // Takes a chunk of the stream.
  take(chunk) {
    const { message } = this;
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    const delta = choice?.delta ?? {};
    if (delta.content) message.content += delta.content;
    if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
    for (const call of delta.tool_calls ?? []) this.takeCall(call);
    if (choice?.finish_reason) message.reason = choice.finish_reason;
    if (chunk.diffusion?.tokens) this.canvas.add(chunk.diffusion);
    else if (chunk.diffusion) this.about = chunk.diffusion;
    if (delta.content || delta.reasoning_content || delta.tool_calls) this.draw();
  }

  takeCall(delta) {
    const calls = (this.message.tool_calls ??= []);
    const call = (calls[delta.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (delta.id) call.id = delta.id;
    if (delta.function?.name) call.function.name = delta.function.name;
    call.function.arguments += delta.function?.arguments ?? "";
  }

  draw() {
    const { message } = this;
    this.thought.hidden = !message.reasoning_content;
    this.thought.lastChild.textContent = message.reasoning_content ?? "";
    this.body.replaceChildren(...markdown(message.content));
    this.calls.replaceChildren(...(message.tool_calls ?? []).map(callBox));
  }

  // Nothing more comes; says how it went.
  end(actions) {
    const { message, usage } = this;
    const words = [];
    if (message.reason === "length") words.push("cut for its length");
    if (this.about?.warning) words.push(this.about.warning);
    if (message.reason === "stopped") words.push("stopped");
    if (usage) words.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
    if (usage?.prompt_tokens_details?.cached_tokens) words.push(`${usage.prompt_tokens_details.cached_tokens} remembered`);
    if (this.about?.prefill_seconds) words.push(`prompt ${short(this.about.prefill_seconds)} s`);
    this.form?.remove();
    this.foot.replaceChildren(words.join(" · "), " ", actionsOf(actions));
    this.canvas.end(this.about);
  }

  // Asks for what the calls gave; `done` gets a text for each.
  askResults(done) {
    const form = make("form", "results");
    const fields = this.message.tool_calls.map((call) => {
      const label = make("label", "", `What ${call.function.name} gives`);
      const field = make("textarea");
      field.rows = 2;
      label.append(field);
      form.append(label);
      return field;
    });
    const send = make("button", "", "Send results");
    send.type = "submit";
    form.append(send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      done(fields.map((field) => field.value));
    });
    this.calls.after(form);
    this.form = form;
  }
}

function callBox(call) {
  const box = make("div", "call");
  let words = call.function.arguments;
  try {
    words = JSON.stringify(JSON.parse(words), null, 2);
  } catch {
    // it is not whole yet
  }
  box.append(make("b", "", call.function.name), make("pre", "", words));
  return box;
}

function actionsOf(actions) {
  const box = make("span", "actions");
  for (const [name, act] of Object.entries(actions ?? {})) {
    const button = make("button", "small", name);
    button.type = "button";
    button.addEventListener("click", act);
    box.append(button);
  }
  return box;
}

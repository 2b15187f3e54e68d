// The page: which conversation is on show, sending and stopping, and the list at the side.

import { Failure, complete, models, setKey } from "./api.js";
import { redraw } from "./canvas.js";
import { refreshPalette } from "./colour.js";
import { ask } from "./dialog.js";
import { make } from "./dom.js";
import { fields, open as openSettings, systemText } from "./settings.js";
import { begin, exported, remove, save, state, take } from "./store.js";
import { AnswerTurn, userTurn } from "./turns.js";

const byId = (id) => document.getElementById(id);
const [log, composer, prompt, send, stop, note, status] =
  ["log", "composer", "prompt", "send", "stop", "note", "status"].map(byId);
let current = state.conversations[0] ?? null;
let running = null; // what stops the answer that is being written
let model = "";
const turns = new WeakMap(); // by message

function tell(words) {
  note.textContent = words;
  note.hidden = !words;
}

function keep() {
  const full = save();
  if (full) tell(full);
}

// The element of an answer, which keeps the steps that were seen.
function turnOf(message) {
  if (!turns.has(message)) turns.set(message, new AnswerTurn(message));
  return turns.get(message);
}

// Draws everything of the conversation on show.
function show(conversation) {
  running?.abort();
  current = conversation;
  log.replaceChildren();
  const messages = current?.messages ?? [];
  messages.forEach((message, at) => {
    if (message.role !== "assistant") {
      log.append(userTurn(message, at === lastAsked(messages) ? { Edit: edit } : {}));
      return;
    }
    const turn = turnOf(message);
    log.append(turn.element);
    turn.end(at === messages.length - 1 ? { Retry: retry } : {});
    if (at === messages.length - 1) askResults(turn);
  });
  if (!messages.length) log.append(make("p", "quiet empty", "Nothing is said yet. What is written here stays in this browser."));
  byId("title").textContent = nameOf(current);
  document.title = current ? `${nameOf(current)} · mlx-dgemma` : "mlx-dgemma";
  showList();
  toEnd();
}

const lastAsked = (messages) => messages.findLastIndex((message) => message.role === "user");
const nameOf = (conversation) => conversation?.title || "New conversation";
const isAtEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

function showList() {
  byId("conversations").replaceChildren(
    ...state.conversations.map((conversation) => {
      const item = make("li");
      const name = make("button", "name", nameOf(conversation));
      name.addEventListener("click", () => {
        show(conversation);
        toggleSide(false);
      });
      if (conversation === current) name.setAttribute("aria-current", "true");
      const rename = make("button", "small", "Rename");
      rename.addEventListener("click", () => renameOne(conversation));
      const gone = make("button", "small", "Delete");
      gone.addEventListener("click", () => removeOne(conversation));
      for (const button of [rename, gone]) button.setAttribute("aria-label", `${button.textContent} ${nameOf(conversation)}`);
      item.append(name, rename, gone);
      return item;
    }),
  );
}

async function renameOne(conversation) {
  const title = await ask("Rename this conversation", "Name", conversation.title);
  if (!title?.trim()) return;
  conversation.title = title.trim();
  keep();
  showList();
  if (conversation === current) byId("title").textContent = nameOf(current);
}

async function removeOne(conversation) {
  if ((await ask(`Delete “${nameOf(conversation)}”?`, "")) === null) return;
  remove(conversation);
  keep();
  if (conversation === current) show(state.conversations[0] ?? null);
  else showList();
}

function submit() {
  const text = prompt.value;
  if (running || !text.trim()) return;
  if (!current) current = begin();
  if (!current.messages.length) {
    current.title = text.trim().split("\n")[0].slice(0, 60);
    log.replaceChildren();
  }
  prompt.value = "";
  grow();
  current.messages.push({ role: "user", content: text });
  show(current);
  run();
}

// Writes the next answer.
async function run() {
  tell("");
  const conversation = current;
  const message = { role: "assistant", content: "" };
  const sent = conversation.messages.map(forServer);
  const turn = turnOf(message);
  for (const folded of log.querySelectorAll("details.canvas")) folded.open = false;
  log.append(turn.element);
  conversation.messages.push(message);
  running = new AbortController();
  busy(true);
  try {
    const system = systemText() ? [{ role: "system", content: systemText() }] : [];
    const body = { model, messages: [...system, ...sent], stream: true, stream_options: { include_usage: true }, ...fields() };
    for await (const chunk of complete(body, running.signal)) {
      const isDown = isAtEnd();
      turn.take(chunk);
      if (isDown) toEnd();
    }
  } catch (error) {
    message.reason = "stopped";
    if (error.name !== "AbortError") await failed(error);
  }
  running = null;
  busy(false);
  if (!message.content && !message.tool_calls && !message.reasoning_content && message.reason === "stopped") {
    conversation.messages.pop();
    turn.element.remove();
  }
  keep();
  if (conversation === current) ended(turn);
}

function ended(turn) {
  const isDown = isAtEnd();
  turn.end({ Retry: retry });
  askResults(turn);
  if (isDown) toEnd();
  showList();
  prompt.focus({ preventScroll: true });
}

// What went wrong, in one line; a key is asked for where one is needed.
async function failed(error) {
  tell(error instanceof Failure ? error.message : `This page failed: ${error.message}`);
  if (error.status === 401) await askKey();
}

async function askKey() {
  const key = await ask("This server needs a key", "Key");
  if (key) setKey(key);
  if (key && (await look())) tell("The key is taken for this tab; send again.");
}

function forServer({ role, content, reasoning_content, tool_calls, tool_call_id }) {
  const own = { role, content };
  if (reasoning_content) own.reasoning_content = reasoning_content;
  if (tool_calls) own.tool_calls = tool_calls;
  if (tool_call_id) own.tool_call_id = tool_call_id;
  return own;
}

function askResults(turn) {
  if (!turn.message.tool_calls?.length || turn.message.reason === "stopped") return;
  turn.askResults((results) => {
    results.forEach((content, i) => {
      current.messages.push({ role: "tool", content, tool_call_id: turn.message.tool_calls[i].id });
    });
    show(current);
    run();
  });
}

// Forgets the last answer, with what its calls gave, and asks again.
function retry() {
  if (running) return;
  current.messages.length = lastAsked(current.messages) + 1;
  show(current);
  run();
}

// Takes the last question back, to be changed.
function edit() {
  if (running) return;
  const at = lastAsked(current.messages);
  prompt.value = current.messages[at].content;
  current.messages.length = at;
  keep();
  show(current);
  grow();
  prompt.focus();
}

function busy(is) {
  send.hidden = is;
  stop.hidden = !is;
  status.textContent = is ? "Writing …" : "";
  log.setAttribute("aria-busy", String(is));
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 3)}px`;
}

function toggleSide(isOpen) {
  document.body.classList.toggle("side", isOpen);
  byId("menu").setAttribute("aria-expanded", String(isOpen));
}

function download() {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  link.download = "conversations.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function upload() {
  const file = byId("file").files[0];
  byId("file").value = "";
  if (!file) return;
  try {
    const added = take(await file.text());
    tell(`${added} conversation${added === 1 ? " was" : "s were"} added.`);
    keep();
    show(current ?? state.conversations[0] ?? null);
  } catch (error) {
    tell(error.message);
  }
}

// Asks the server what it serves; whether it said so.
async function look() {
  try {
    const [served] = await models();
    model = served.id;
    byId("model").textContent = `${served.id}, ${served.context_length.toLocaleString("en")} tokens`;
    return true;
  } catch (error) {
    await failed(error);
    return false;
  }
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", grow);
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else toggleSide(false);
});
byId("new").addEventListener("click", () => {
  show(null);
  toggleSide(false);
  prompt.focus();
});
byId("menu").addEventListener("click", () => toggleSide(!document.body.classList.contains("side")));
byId("settings").addEventListener("click", openSettings);
byId("export").addEventListener("click", download);
byId("import").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", upload);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  refreshPalette();
  redraw();
});
show(current);
look();

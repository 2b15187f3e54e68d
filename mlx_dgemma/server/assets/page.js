// The page: which conversation is on show, sending and stopping, and the list at the side.

import { Failure, complete, forServer, models, setKey } from "./api.js";
import { redraw } from "./canvas.js";
import { refreshPalette } from "./colour.js";
import { ask } from "./dialog.js";
import { make } from "./dom.js";
import { download, upload } from "./files.js";
import { listen, put, taken, waits } from "./images.js";
import { fields, open as openSettings, systemText } from "./settings.js";
import { begin, image, keepImage, remove, save, state } from "./store.js";
import { AnswerTurn, userTurn } from "./turns.js";

const byId = (id) => document.getElementById(id);
const [log, composer, prompt, send, stop, note, status] =
  ["log", "composer", "prompt", "send", "stop", "note", "status"].map(byId);
let current = state.conversations[0] ?? null;
let running = null; // what stops the answer that is being written
let model = "";
let sees = false; // whether it takes images
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
  if (running || !(text.trim() || waits())) return;
  if (!current) current = begin();
  if (!current.messages.length) {
    current.title = text.trim().split("\n")[0].slice(0, 60) || "Image";
    log.replaceChildren();
  }
  prompt.value = "";
  grow();
  const message = { role: "user", content: text };
  if (waits()) message.images = taken().map(keepImage);
  current.messages.push(message);
  keep();
  show(current);
  run();
}

// Writes the next answer.
async function run() {
  tell("");
  const conversation = current;
  const message = { role: "assistant", content: "" };
  const history = [...conversation.messages];
  const turn = turnOf(message);
  for (const folded of log.querySelectorAll("details.canvas")) folded.open = false;
  log.append(turn.element);
  conversation.messages.push(message);
  running = new AbortController();
  busy(true);
  try {
    const system = systemText() ? [{ role: "system", content: systemText() }] : [];
    const sent = await Promise.all(history.map(forServer));
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
async function edit() {
  if (running) return;
  const at = lastAsked(current.messages);
  const { content, images } = current.messages[at];
  prompt.value = content;
  current.messages.length = at;
  put((await Promise.all((images ?? []).map(image))).filter(Boolean));
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

async function takeFile() {
  const told = await upload(byId("file"));
  if (!told) return;
  tell(told.words);
  if (!told.isIn) return;
  keep();
  show(current ?? state.conversations[0] ?? null);
}

// Asks the server what it serves; whether it said so.
async function look() {
  try {
    const [served] = await models();
    model = served.id;
    sees = served.input_modalities.includes("image");
    byId("attach").hidden = !sees;
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
byId("file").addEventListener("change", takeFile);
listen(tell, () => sees);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  refreshPalette();
  redraw();
});
show(current);
look();

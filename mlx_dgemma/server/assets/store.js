// Conversations and settings in the browser's storage, and as a file.

const CONVERSATIONS = "dgemma.conversations";
const SETTINGS = "dgemma.settings";
const FORM = "mlx-dgemma conversations 1";
const ROLES = ["user", "assistant", "tool"];

export const state = { conversations: read(CONVERSATIONS, []).filter(isConversation), settings: read(SETTINGS, {}) };

function read(name, otherwise) {
  try {
    const value = JSON.parse(localStorage.getItem(name));
    return value !== null && typeof value === typeof otherwise && Array.isArray(value) === Array.isArray(otherwise) ? value : otherwise;
  } catch {
    return otherwise;
  }
}

// Keeps everything; says in words why it could not.
export function save() {
  try {
    localStorage.setItem(CONVERSATIONS, JSON.stringify(state.conversations));
    localStorage.setItem(SETTINGS, JSON.stringify(state.settings));
    return "";
  } catch {
    return "The browser has no room to keep this; export conversations and delete some.";
  }
}

export function begin() {
  const conversation = { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", messages: [] };
  state.conversations.unshift(conversation);
  return conversation;
}

export function remove(conversation) {
  state.conversations = state.conversations.filter((own) => own !== conversation);
}

export function exported() {
  return JSON.stringify({ form: FORM, conversations: state.conversations }, null, 1);
}

// Adds what a file holds; throws an Error whose message says what is wrong with it.
export function take(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error("This is no file of conversations: it is not JSON.");
  }
  const found = content?.conversations;
  if (content?.form !== FORM || !Array.isArray(found) || !found.every(isConversation)) {
    throw new Error("This is no file of conversations that this page wrote.");
  }
  const known = new Set(state.conversations.map((own) => own.id));
  const added = found.filter((own) => !known.has(own.id));
  state.conversations.unshift(...added);
  return added.length;
}

function isConversation(value) {
  return Boolean(value) && typeof value.id === "string" && typeof value.title === "string" &&
    Array.isArray(value.messages) && value.messages.every(isMessage);
}

function isMessage(value) {
  return Boolean(value) && ROLES.includes(value.role) && typeof value.content === "string" &&
    (value.reasoning_content === undefined || typeof value.reasoning_content === "string") &&
    (value.tool_calls === undefined || (Array.isArray(value.tool_calls) && value.tool_calls.every(isCall)));
}

function isCall(value) {
  return typeof value?.id === "string" && typeof value?.function?.name === "string" &&
    typeof value.function.arguments === "string";
}

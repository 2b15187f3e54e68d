// Conversations and settings in the browser's storage, their images in its database, and all as a file.

const CONVERSATIONS = "dgemma.conversations";
const SETTINGS = "dgemma.settings";
const FORM = "mlx-dgemma conversations 1";
const ROLES = ["user", "assistant", "tool"];
const IMAGES = "images";
const made = new Map(); // images of this tab by name, whatever becomes of the database
let hasRoom = true; // in it

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
    return hasRoom ? "" : "The browser has no room to keep images; they are there as long as this tab.";
  } catch {
    return "The browser has no room to keep this; export conversations and delete some.";
  }
}

export function begin() {
  const conversation = { id: unique(), title: "", messages: [] };
  state.conversations.unshift(conversation);
  return conversation;
}

const unique = () => crypto.randomUUID?.() ?? String(Math.random());

export function remove(conversation) {
  state.conversations = state.conversations.filter((own) => own !== conversation);
  forgetImages(imagesOf([conversation]));
}

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("dgemma", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(IMAGES);
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = reject;
}).catch(() => null);

// What some work on the images gave; undefined if it failed.
async function onImages(mode, work) {
  const own = await database;
  if (!own) return undefined;
  return new Promise((resolve) => {
    const transaction = own.transaction(IMAGES, mode);
    const asked = work(transaction.objectStore(IMAGES));
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onabort = () => resolve(undefined);
  });
}

// Keeps an image, a data: URL; the name by which it is found.
export function keepImage(url) {
  const name = unique();
  made.set(name, url);
  onImages("readwrite", (images) => images.put(url, name)).then((key) => {
    hasRoom &&= Boolean(key);
  });
  return name;
}

export const image = async (name) => made.get(name) ?? onImages("readonly", (images) => images.get(name));

const imagesOf = (conversations) => conversations.flatMap((own) => own.messages.flatMap((message) => message.images ?? []));

// Drops those of these images that no conversation has.
function forgetImages(names) {
  const known = new Set(imagesOf(state.conversations));
  for (const name of names) {
    if (!known.has(name)) onImages("readwrite", (images) => images.delete(name));
  }
}

// Everything as text, images in their places.
export async function exported() {
  const conversations = structuredClone(state.conversations);
  for (const message of conversations.flatMap((own) => own.messages)) {
    if (message.images) message.images = (await Promise.all(message.images.map(image))).filter(Boolean);
  }
  return JSON.stringify({ form: FORM, conversations }, null, 1);
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
  const isOurs = content?.form === FORM && Array.isArray(found) && found.every(isConversation);
  if (!isOurs || !imagesOf(found).every((own) => own.startsWith("data:image/"))) {
    throw new Error("This is no file of conversations that this page wrote.");
  }
  const known = new Set(state.conversations.map((own) => own.id));
  const added = found.filter((own) => !known.has(own.id));
  for (const message of added.flatMap((own) => own.messages)) {
    if (message.images) message.images = message.images.map(keepImage);
  }
  state.conversations.unshift(...added);
  return added.length;
}

function isConversation(value) {
  return Boolean(value) && typeof value.id === "string" && typeof value.title === "string" &&
    Array.isArray(value.messages) && value.messages.every(isMessage);
}

function isMessage(value) {
  return Boolean(value) && ROLES.includes(value.role) && typeof value.content === "string" &&
    (value.images === undefined || (Array.isArray(value.images) && value.images.every((own) => typeof own === "string"))) &&
    (value.reasoning_content === undefined || typeof value.reasoning_content === "string") &&
    (value.tool_calls === undefined || (Array.isArray(value.tool_calls) && value.tool_calls.every(isCall)));
}

function isCall(value) {
  return typeof value?.id === "string" && typeof value?.function?.name === "string" &&
    typeof value.function.arguments === "string";
}

onImages("readonly", (images) => images.getAllKeys()).then((names) => forgetImages(names ?? []));

// Conversations as a file, out and in.

import { make } from "./dom.js";
import { exported, take } from "./store.js";

export async function download() {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([await exported()], { type: "application/json" }));
  link.download = "conversations.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Takes in the file that was chosen; what came of it, in words, and whether something did. Nothing if there is none.
export async function upload(field) {
  const [file] = field.files;
  field.value = "";
  if (!file) return null;
  try {
    const added = await take(await file.text());
    return { words: `${added} conversation${added === 1 ? " was" : "s were"} added.`, isIn: true };
  } catch (error) {
    return { words: error.message, isIn: false };
  }
}

// The server's answers: whole ones as JSON, streams chunk by chunk. Whatever goes wrong is a Failure with one line.

import { image } from "./store.js";

const KEY = "dgemma.key"; // of this tab only

export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached; is it running?");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no error object of ours
  }
  const later = response.headers.get("Retry-After");
  return new Failure(later ? `${message} (again in ${later} s)` : message, response.status);
}

// A message as the server takes it; images stand before the text.
export async function forServer({ role, content, images, reasoning_content, tool_calls, tool_call_id }) {
  const own = { role, content };
  if (images) {
    const urls = await Promise.all(images.map(image));
    if (!urls.every(Boolean)) throw new Failure("An image of this conversation is gone from the browser; edit its turn.");
    own.content = urls.map((url) => ({ type: "image_url", image_url: { url } }));
    if (content.trim()) own.content.push({ type: "text", text: content });
  }
  if (reasoning_content) own.reasoning_content = reasoning_content;
  if (tool_calls) own.tool_calls = tool_calls;
  if (tool_call_id) own.tool_call_id = tool_call_id;
  return own;
}

export async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

// The chunks of an answer, as they come.
export async function* complete(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of events(response.body.getReader())) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message);
    yield chunk;
  }
  throw new Failure("The connection ended before the answer did.");
}

// What stands behind `data:` in a stream of events; comments say nothing.
async function* events(reader) {
  const decoder = new TextDecoder();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      waiting += decoder.decode(value, { stream: true });
      const parts = waiting.split("\n\n");
      waiting = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw new Failure("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

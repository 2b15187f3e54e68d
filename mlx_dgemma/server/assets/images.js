// Images for the next question: picked, dropped or pasted, and shown small until they are sent.

import { make } from "./dom.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // what the server reads
const LARGEST = 64 << 20; // bytes of a file
const AS_IT_IS = 1 << 20; // bytes up to which one goes unchanged
const PIXELS = 1120 * 48 * 48; // what the largest budget sees
const [tray, picked, prompt] = ["tray", "picked", "prompt"].map((id) => document.getElementById(id));
let waiting = []; // data: URLs

export const waits = () => waiting.length > 0;

// Those that wait, which do no more.
export function taken() {
  const urls = waiting;
  put([]);
  return urls;
}

export function put(urls) {
  waiting = urls;
  tray.hidden = !urls.length;
  tray.replaceChildren(...urls.map(item));
}

function item(url, at) {
  const box = make("li");
  const gone = make("button", "small", "×");
  gone.type = "button";
  gone.setAttribute("aria-label", `Remove image ${at + 1}`);
  gone.addEventListener("click", () => {
    put(waiting.filter((own) => own !== url));
    prompt.focus();
  });
  box.append(thumbnail(url, at), gone);
  return box;
}

export function thumbnail(url, at) {
  const image = make("img", "thumbnail");
  image.alt = `Image ${at + 1}`;
  if (url) image.src = url;
  return image;
}

// Adds files; what cannot be an image is told in a line.
async function add(files, tell) {
  for (const file of files) {
    try {
      const url = await read(file);
      put([...waiting.filter((own) => own !== url), url]);
    } catch (error) {
      tell(`${file.name || "This"} ${error.message}`);
    }
  }
  prompt.focus();
}

// A file as a data: URL: as it is, or as a JPEG of as many pixels as any model takes.
async function read(file) {
  if (file.size > LARGEST) throw new Error(`has more than ${LARGEST >> 20} MB; save it smaller.`);
  let image;
  try {
    image = await createImageBitmap(file); // upright, whatever the camera was
  } catch {
    throw new Error("is no image that this browser reads; give a PNG, JPEG, WebP or GIF.");
  }
  const url = TAKEN.includes(file.type) && file.size <= AS_IT_IS ? await asItIs(file) : drawn(image);
  image.close();
  if (!url.startsWith("data:image/")) throw new Error("is too large for this browser; scale it down.");
  return url;
}

function asItIs(file) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("loadend", () => resolve(reader.result ?? ""));
    reader.readAsDataURL(file);
  });
}

function drawn(image) {
  const canvas = make("canvas");
  const scale = Math.min(1, Math.sqrt(PIXELS / (image.width * image.height)));
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  if (!context) return "";
  context.fillStyle = "#fff"; // as the server does with what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

// Takes what comes in any of the three ways; `tell` shows a line, `sees` says whether the model takes images.
export function listen(tell, sees) {
  const come = (files) => {
    if (sees()) add(files, tell);
    else tell("This model takes no images.");
  };
  const drags = (event) => event.dataTransfer?.types.includes("Files");
  document.getElementById("attach").addEventListener("click", () => picked.click());
  picked.addEventListener("change", () => {
    come([...picked.files]);
    picked.value = "";
  });
  document.addEventListener("dragover", (event) => {
    if (!drags(event)) return;
    event.preventDefault(); // or the browser would leave the page for the file
    document.body.classList.add("drop");
  });
  for (const name of ["dragleave", "drop"]) {
    document.addEventListener(name, () => document.body.classList.remove("drop"));
  }
  document.addEventListener("drop", (event) => {
    if (!drags(event)) return;
    event.preventDefault();
    come([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length || event.clipboardData.getData("text/plain")) return; // a table comes as both
    event.preventDefault();
    come(files);
  });
}

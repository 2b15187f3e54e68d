// The canvas of an answer: the newest draft while it is denoised, and a strip of all steps to go through afterwards.

import { make, short } from "./dom.js";
import { paint } from "./token.js";

export const SCALE = [0, 0.1, 0.5, 1.5, 5]; // nats at which the palette has its colours, as in reports
const NOISE = 0;
const CLAMPED = 2;
const SETTLED = 3;
const seen = []; // views on the page, to be drawn again when it turns light or dark

export class CanvasView {
  constructor() {
    this.drafts = [];
    this.at = -1;
    this.element = make("details", "canvas");
    this.element.hidden = true;
    this.summary = make("summary");
    this.box = make("div", "tokens text");
    this.box.setAttribute("role", "img");
    this.slider = make("input");
    Object.assign(this.slider, { type: "range", min: 0, max: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Denoising step");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.readout = make("p", "readout");
    const key = make("p", "key");
    key.append(
      make("span", "sample", "accepted"), make("span", "sample open", "renoised"),
      make("span", "sample clamped", "clamped"), make("span", "sample settled", "settled"),
      make("span", "", "background: entropy"), make("span", "", "· behind the end"),
    );
    this.element.append(this.summary, this.box, this.slider, this.readout, key);
    this.tokens = [];
    seen.push(new WeakRef(this));
  }

  // Takes the next denoising step; what is on show follows it unless somebody went back.
  add(draft) {
    if (!draft.tokens) return;
    const follows = this.at === this.drafts.length - 1;
    if (!this.drafts.length) {
      this.element.hidden = false;
      this.element.open = true;
    }
    this.drafts.push(draft);
    this.slider.max = this.drafts.length - 1;
    this.summary.textContent = `Canvas ${draft.canvas + 1}, step ${draft.step} of at most ${draft.max_steps}`;
    if (follows) this.show(this.drafts.length - 1);
  }

  show(at) {
    this.at = at;
    this.slider.value = at;
    const draft = this.drafts[at];
    while (this.tokens.length < draft.tokens.length) {
      const token = make("span", "token");
      this.tokens.push(token);
      this.box.append(token, make("br"));
    }
    draft.tokens.forEach(([text, nats, kind], position) => {
      paint(this.tokens[position], text.replaceAll("\n", "↵"), nats, SCALE, {
        behind: position > draft.end || text === "<pad>",
        open: kind === NOISE,
        clamped: kind === CLAMPED,
        settled: kind === SETTLED,
        breaks: text.includes("\n"),
        special: /^<.+>$/.test(text),
      });
    });
    const words = `canvas ${draft.canvas + 1} · step ${draft.step} · ${draft.accepted} of ${draft.tokens.length} accepted · ` +
      `mean entropy ${short(draft.mean_entropy)} nats · temperature ${draft.temperature.toFixed(2)}`;
    this.readout.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.box.setAttribute("aria-label", `Draft: ${draft.text}`);
    const height = this.box.getBoundingClientRect().height;
    if (height) this.box.style.minHeight = `${Math.ceil(height)}px`; // it grows and never shrinks: nothing below jumps
  }

  // The answer is there; `about` are its figures.
  end(about) {
    if (!this.drafts.length) return;
    const steps = about?.steps?.length ? about.steps.join(" + ") : this.drafts.length;
    const speed = about?.tokens_per_forward ? ` · ${short(about.tokens_per_forward)} tokens per forward` : "";
    const seconds = about?.denoise_seconds ? ` · ${short(about.denoise_seconds)} s` : "";
    this.summary.textContent = `Steps: ${steps}${speed}${seconds}`;
  }
}

export function redraw() {
  for (const view of seen) {
    const own = view.deref();
    if (own && own.at >= 0) own.show(own.at);
  }
}

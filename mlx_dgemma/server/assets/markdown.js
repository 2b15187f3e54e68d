// Markdown as elements. Text is put in as text, so that no markup of a model's is the page's; links go to the web only.

import { make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ROW = /^\s*\S.*\|/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|__(?=\S)(.+?)(?<=\S)__|\*(?=\S)(.+?)(?<=\S)\*|(?<!\w)_(?=\S)(.+?)(?<=\S)_(?!\w)|~~(?=\S)(.+?)(?<=\S)~~|\[([^\]\n]*)\]\(([^()\s]+)\)|\\([!-/:-@[-`{-~])/s;
const SAFE = /^(https?:\/\/|mailto:)/i;
const DEEP = 12; // marks inside marks

// The elements of a text.
export function markdown(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const made = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    let taken = 1;
    if (!line.trim()) {
      i++;
      continue;
    }
    if (fence) {
      taken = fenced(lines, i, fence, made);
    } else if (heading) {
      made.push(inlineIn(make(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]));
    } else if (RULE.test(line)) {
      made.push(make("hr"));
    } else if (QUOTE.test(line) && depth < DEEP) {
      taken = run(lines, i, (own) => QUOTE.test(own));
      const quote = make("blockquote");
      quote.append(...blocks(lines.slice(i, i + taken).map((own) => QUOTE.exec(own)[1]), depth + 1));
      made.push(quote);
    } else if (ITEM.test(line) && depth < DEEP) {
      taken = list(lines, i, made, depth);
    } else if (ROW.test(line) && DIVIDER.test(lines[i + 1] ?? "")) {
      taken = table(lines, i, made);
    } else {
      taken = Math.max(1, run(lines, i, (own, at) => own.trim() && (at === i || !begins(own))));
      made.push(inlineIn(make("p"), lines.slice(i, i + taken).join("\n")));
    }
    i += taken;
  }
  return made;
}

const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

// How many lines from one on are of a kind.
function run(lines, from, isOne) {
  let end = from;
  while (end < lines.length && isOne(lines[end], end)) end++;
  return end - from;
}

// A block of code, up to its fence or to the end of what there is; returns its lines' number.
function fenced(lines, from, fence, made) {
  const closes = (line) => line.trim().startsWith(fence[1]) && !line.trim().slice(fence[1].length).trim();
  const length = run(lines, from + 1, (line) => !closes(line));
  const code = lines.slice(from + 1, from + 1 + length).join("\n");
  const box = make("div", "code");
  const copy = make("button", "copy", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not copied";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const shown = make("pre");
  shown.tabIndex = 0;
  shown.append(make("code", "", code));
  box.append(make("span", "language", fence[2]), copy, shown);
  made.push(box);
  return Math.min(length + 2, lines.length - from);
}

// A list with what is indented under its items; returns its lines' number.
function list(lines, from, made, depth) {
  const indent = ITEM.exec(lines[from])[1].length;
  const isOrdered = /\d/.test(ITEM.exec(lines[from])[2]);
  const box = make(isOrdered ? "ol" : "ul");
  if (isOrdered) box.start = parseInt(ITEM.exec(lines[from])[2], 10);
  let i = from;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length < indent || /\d/.test(item[2]) !== isOrdered) break;
    const length = run(lines, i + 1, (line, at) => belongs(lines, line, at, indent));
    const own = lines.slice(i + 1, i + 1 + length);
    const least = Math.min(...own.filter((line) => line.trim()).map((line) => line.search(/\S/)), 99);
    const inside = blocks([item[3], ...own.map((line) => line.slice(Math.min(least, line.search(/\S|$/))))], depth + 1);
    const element = make("li");
    element.append(...(inside[0]?.tagName === "P" ? [...inside[0].childNodes, ...inside.slice(1)] : inside));
    box.append(element);
    i += length + 1;
  }
  made.push(box);
  return i - from;
}

// Whether a line is part of the item before it: indented more, or empty before one that is.
function belongs(lines, line, at, indent) {
  if (!line.trim()) return at + 1 < lines.length && lines[at + 1].search(/\S/) > indent;
  return line.search(/\S/) > indent;
}

function table(lines, from, made) {
  const bare = (line) => line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  const cells = (line) => bare(line).split(/(?<!\\)\|/).map((cell) => cell.trim());
  const length = 2 + run(lines, from + 2, (line) => line.includes("|") && line.trim());
  const box = make("table");
  const scroll = make("div", "scroll");
  const row = (line, name) => {
    const tr = make("tr");
    tr.append(...cells(line).map((cell) => inlineIn(make(name), cell.replaceAll("\\|", "|"))));
    return tr;
  };
  box.append(row(lines[from], "th"), ...lines.slice(from + 2, from + length).map((line) => row(line, "td")));
  scroll.tabIndex = 0;
  scroll.append(box);
  made.push(scroll);
  return length;
}

function inlineIn(element, text, depth = 0) {
  let rest = text;
  for (let found; depth < DEEP && (found = INLINE.exec(rest)); rest = rest.slice(found.index + found[0].length)) {
    element.append(rest.slice(0, found.index), marked(found, depth));
  }
  element.append(rest);
  return element;
}

function marked(found, depth) {
  const [whole, , code, strong, strong2, em, em2, struck, label, address, escaped] = found;
  if (code !== undefined) return make("code", "", code.replace(/^ (.*) $/s, "$1"));
  if (escaped !== undefined) return escaped;
  if (address !== undefined) {
    if (!SAFE.test(address)) return whole;
    const link = inlineIn(make("a"), label || address, DEEP);
    Object.assign(link, { href: address, target: "_blank", rel: "noopener noreferrer" });
    return link;
  }
  if (struck !== undefined) return inlineIn(make("s"), struck, depth + 1);
  const bold = strong ?? strong2;
  return inlineIn(make(bold !== undefined ? "strong" : "em"), bold ?? em ?? em2, depth + 1);
}

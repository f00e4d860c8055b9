// -- Markdown as data: a text becomes blocks, and their text becomes parts ---------------------
//
// block: {kind: "paragraph", parts} | {kind: "heading", level, parts} | {kind: "rule"}
//      | {kind: "code", language, text} | {kind: "quote", blocks}
//      | {kind: "list", ordered, items: [{number, done (null: no box), blocks}]}
//      | {kind: "table", align, rows: [[parts]]}; `at` is where it starts in the text.
// part: text | {kind: "strong" | "emphasis" | "strike", parts} | {kind: "code" | "math", text}
//      | {kind: "link", href, parts}
//
// HTML is text here. Whatever a model writes, the time is linear and all of its words are kept.

const DEEPEST = 12;           // quotes, lists and emphasis within each other; text beyond
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)(.*)$/;
const BLANK = /^\s*$/;

function blocks(text, depth = 0) {
  const lines = text.split("\n");
  const found = [];
  let line = 0, at = 0;
  while (line < lines.length) {
    const [block, end] = BLANK.test(lines[line]) ? [null, line + 1] : oneBlock(lines, line, depth);
    if (block) found.push({ ...block, at });
    while (line < end) at += lines[line++].length + 1;
  }
  return found;
}

// The block that starts at a line, and the line after it.
function oneBlock(lines, start, depth) {
  const line = lines[start];
  let found;
  if ((found = FENCE.exec(line))) return codeBlock(lines, start, found);
  if ((found = HEADING.exec(line))) {
    const words = (found[2] ?? "").trim().replace(/(^|[ \t])#+$/, "").trim();
    return [{ kind: "heading", level: found[1].length, parts: inline(words) }, start + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, start + 1];
  if (depth < DEEPEST && /^ {0,3}>/.test(line)) return quoteBlock(lines, start, depth);
  if (depth < DEEPEST && ITEM.test(line)) return listBlock(lines, start, depth);
  if (startsTable(lines, start)) return tableBlock(lines, start);
  let end = start + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !interrupts(lines, end, depth)) end++;
  return [{ kind: "paragraph", parts: inline(lines.slice(start, end).join("\n")) }, end];
}

function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth < DEEPEST && (/^ {0,3}>/.test(line) || ITEM.exec(line)?.[4])) return true;
  return startsTable(lines, at);
}

function codeBlock(lines, start, [, fence, info]) {
  const indent = lines[start].search(/\S/);
  const close = new RegExp(`^ {0,3}\\${fence[0]}{${fence.length},}[ \\t]*$`);
  let end = start + 1;
  while (end < lines.length && !close.test(lines[end])) end++;
  const inner = lines.slice(start + 1, end).map((one) => dedent(one, indent));
  return [{ kind: "code", language: info.trim(), text: inner.join("\n") }, Math.min(end + 1, lines.length)];
}

function quoteBlock(lines, start, depth) {
  let end = start;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end++;
  const inner = lines.slice(start, end).map((one) => one.replace(/^ {0,3}> ?/, ""));
  return [{ kind: "quote", blocks: blocks(inner.join("\n"), depth + 1) }, end];
}

function listBlock(lines, start, depth) {
  const [, space, mark] = ITEM.exec(lines[start]);
  const base = width(space), ordered = /\d/.test(mark);
  const items = [];
  let line = start;
  for (;;) {
    const found = line < lines.length && ITEM.exec(lines[line]);
    const next = found && !RULE.test(lines[line]) && width(found[1]) <= base + 1;
    if (!next || /\d/.test(found[2]) !== ordered) break;
    const end = itemEnd(lines, line, base, depth);
    items.push(listItem(found, lines.slice(line + 1, end), base, depth));
    line = end;
  }
  return [{ kind: "list", ordered, items }, line];
}

// An item goes on over lines that are indented, and over further lines of its paragraph.
function itemEnd(lines, start, base, depth) {
  let end = start + 1, blank = false;
  for (; end < lines.length; end++) {
    if (BLANK.test(lines[end])) { blank = true; continue; }
    const inside = width(/^[ \t]*/.exec(lines[end])[0]) > base + 1;
    if (!inside && (blank || ITEM.test(lines[end]) || interrupts(lines, end, depth))) break;
    blank = false;
  }
  return end;
}

function listItem([, space, mark, gap, first], rest, base, depth) {
  const indent = base + mark.length + Math.min(gap.length || 1, 4);
  const box = /^\[([ xX])\][ \t]+(.*)$/.exec(first);
  const inner = [box ? box[2] : first, ...rest.map((line) => dedent(line, indent))];
  const done = box ? box[1] !== " " : null;
  return { number: /\d/.test(mark) ? parseInt(mark) : null, done, blocks: blocks(inner.join("\n"), depth + 1) };
}

const width = (space) => space.replaceAll("\t", "    ").length;

function dedent(line, columns) {
  let at = 0, left = columns;
  while (left > 0 && (line[at] === " " || line[at] === "\t")) left -= line[at++] === "\t" ? 4 : 1;
  return line.slice(at);
}

function startsTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const rule = cells(lines[at + 1]);
  return rule.every((one) => /^:?-+:?$/.test(one)) && cells(lines[at]).length === rule.length;
}

function tableBlock(lines, start) {
  const align = cells(lines[start + 1]).map((one) => {
    if (!one.endsWith(":")) return "start";
    return one.startsWith(":") ? "center" : "end";
  });
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|") && !FENCE.test(lines[end])) end++;
  const rows = [lines[start], ...lines.slice(start + 2, end)];
  return [{ kind: "table", align, rows: rows.map((row) => cells(row).map((one) => inline(one))) }, end];
}

// A bar within a code span does not part two cells.
function cells(row) {
  const text = row.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  const found = text.match(/(?:\\.|`[^`]*`|[^|\\]|\\$)+|(?<=\|)(?=\|)|^(?=\|)|(?<=\|)$/g) ?? [""];
  return found.map((one) => one.replaceAll("\\|", "|").trim());
}

// -- parts of a line ---------------------------------------------------------------------------

const SPECIAL = /[\\`*_~[!<$]|https?:\/\//gi;
const LINK = /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,200}\]){0,1000})\]\([ \t]*<?((?:[^\s()<>]|\([^\s()<>]*\)){0,2000})>?(?:[ \t]+"[^"]*")?[ \t]*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
const URL_IN_TEXT = /https?:\/\/[^\s<>"'`\u3000-\u303f\uff00-\uffef]{1,2000}/iy;
const BREAK = /<br[ \t]*\/?>/iy;

function inline(text, depth = 0) {
  const parts = [], missing = new Set();
  let held = "", at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    const next = special ? special.index : text.length;
    held += text.slice(at, next);
    if (!special) break;
    const [part, end] = onePart(text, next, depth, missing);
    if (typeof part === "string") held += part;
    else {
      if (held) parts.push(held);
      held = "";
      parts.push(part);
    }
    at = end;
  }
  if (held) parts.push(held);
  return parts;
}

// The part at a special character, and where the text goes on; the character itself if it is none.
function onePart(text, at, depth, missing) {
  const mark = text[at];
  const plain = [mark, at + 1];
  if (mark === "\\") return escaped(text, at, missing);
  if (mark === "`") return codeSpan(text, at, missing);
  if (mark === "$") return span("math", text, at, "$$", "$$", missing) ?? plain;
  if (depth >= DEEPEST) return plain;
  if (mark === "*" || mark === "_" || mark === "~") return emphasis(text, at, depth, missing);
  if (mark === "<") {
    const found = matched(BREAK, text, at);
    if (found) return ["\n", at + found[0].length];
    return link(matched(AUTOLINK, text, at), at) ?? plain;
  }
  if (mark === "[" || mark === "!") {
    const found = matched(LINK, text, at);
    return link(found, at, found?.[2], (words) => inline(words, depth + 1)) ?? plain;
  }
  return bareLink(text, at) ?? plain;
}

function matched(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function escaped(text, at, missing) {
  const next = text[at + 1] ?? "";
  const math = next === "(" ? span("math", text, at, "\\(", "\\)", missing)
    : next === "[" ? span("math", text, at, "\\[", "\\]", missing) : null;
  if (math) return math;
  return /[!-/:-@[-`{-~]/.test(next) ? [next, at + 2] : ["\\", at + 1];
}

// What stands between two marks, as it is. `missing` has the marks that do not come again.
function span(kind, text, at, open, close, missing) {
  if (!text.startsWith(open, at) || missing.has(close)) return null;
  const end = text.indexOf(close, at + open.length);
  if (end < 0) missing.add(close);
  if (end <= at + open.length) return null;
  return [{ kind, text: text.slice(at, end + close.length) }, end + close.length];
}

function codeSpan(text, at, missing) {
  let length = 1;
  while (text[at + length] === "`") length++;
  const fence = "`".repeat(length);
  let end = missing.has(fence) ? -1 : text.indexOf(fence, at + length);
  while (end >= 0 && (text[end + length] === "`" || text[end - 1] === "`")) {
    while (text[end] === "`") end++;
    end = text.indexOf(fence, end);
  }
  if (end < 0) {
    missing.add(fence);
    return [fence, at + length];
  }
  const inner = text.slice(at + length, end);
  const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
  return [{ kind: "code", text: padded ? inner.slice(1, -1) : inner }, end + length];
}

const WORD = /[\p{L}\p{N}_]/u;

function emphasis(text, at, depth, missing) {
  const mark = text[at];
  let run = 1;
  while (text[at + run] === mark) run++;
  const length = run > 1 || mark === "~" ? 2 : 1;
  const sign = mark.repeat(length);
  const before = text[at - 1] ?? " ", after = text[at + run] ?? " ";
  const within = WORD.test(before) && WORD.test(after) && (mark === "_" || length === 1);
  const opens = run <= 3 && run >= length && !/\s/.test(after) && !within;
  const end = opens && !missing.has(sign) ? closing(text, at + run, sign) : -1;
  if (end < 0) {
    if (opens) missing.add(sign);
    return [mark.repeat(run), at + run];
  }
  const kind = mark === "~" ? "strike" : length === 2 ? "strong" : "emphasis";
  return [{ kind, parts: inline(text.slice(at + length, end), depth + 1) }, end + length];
}

// Where the sign ends an emphasis: after a word, and not within a longer or shorter run.
function closing(text, from, sign) {
  const mark = sign[0];
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at)) {
    let run = 1;
    while (text[at + run] === mark) run++;
    const ended = !/\s/.test(text[at - 1]) && !(mark === "_" && WORD.test(text[at + run] ?? " "));
    const product = sign === "*" && WORD.test(text[at - 1]) && WORD.test(text[at + run] ?? " ");
    const fits = run === sign.length || run === 3;
    if (ended && fits && !product) return at + run - sign.length;
    at += run;
  }
  return -1;
}

// Links lead to the web or to a letter; anything else stays text.
function link(found, at, href = found?.[1], words = (text) => [text]) {
  if (!found || !/^(https?:\/\/|mailto:)/i.test(href) || !URL.canParse(href)) return null;
  const parts = words(found[2] === undefined ? href : found[1] || href);
  if (found[0][0] === "!") parts.unshift("image: ");      // is not loaded: that would tell its host
  return [{ kind: "link", href, parts }, at + found[0].length];
}

function bareLink(text, at) {
  let href = matched(URL_IN_TEXT, text, at)?.[0] ?? "";
  for (;;) {
    const open = href.split("(").length, close = href.split(")").length;
    const shorter = href.replace(close > open ? /[.,;:!?*_~\])]$/ : /[.,;:!?*_~\]]$/, "");
    if (shorter === href) break;
    href = shorter;
  }
  return URL.canParse(href) ? [{ kind: "link", href, parts: [href] }, at + href.length] : null;
}

// Characters that reorder or hide text: code with them is not what it seems to be.
const HIDDEN = /[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]|[\u{e0000}-\u{e007f}]/gu;
const visible = (text) => text.replace(HIDDEN, (one) =>
  one === "\u200d" ? one : `[U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

// -- Markdown ----------------------------------------------------------------------------------

const partElements = (parts) => parts.map((part) => {
  if (typeof part === "string") return part;
  switch (part.kind) {
    case "code": return element("code", { dir: "ltr" }, visible(part.text));
    case "math": return element("span", { class: "math", dir: "ltr" }, part.text);
    case "link": return linkElement(part);
    default: return element({ strong: "strong", emphasis: "em", strike: "s" }[part.kind], {},
      ...partElements(part.parts));
  }
});

// Where the words of a link look like another address, its true host follows.
function linkElement({ href, parts }) {
  const attributes = { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const made = element("a", attributes, ...partElements(parts));
  const { host } = new URL(href);
  const claims = /[\w-]\.[a-z]{2,}/i.test(made.textContent);
  if (claims && host && !made.textContent.includes(host)) made.append(` (${host})`);
  return made;
}

// The first letter of a whole block decides its direction; what is within it has the same.
const blockElements = (all) => all.map((block) => {
  const made = blockElement(block);
  made.dir ||= "auto";
  return made;
});

function blockElement(block) {
  switch (block.kind) {
    case "paragraph": return element("p", {}, ...partElements(block.parts));
    // The page and the turn have the first headings.
    case "heading": return element(`h${Math.min(block.level + 2, 6)}`,
      { "data-level": block.level }, ...partElements(block.parts));
    case "rule": return element("hr");
    case "code": return codeElement(block);
    case "quote": return element("blockquote", {}, ...block.blocks.map(blockElement));
    case "list": return element(block.ordered ? "ol" : "ul", {}, ...block.items.map(itemElement));
    case "table": return tableElement(block);
  }
}

function itemElement({ number, done, blocks: inner }) {
  const box = done === null ? null : element("input",
    { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" });
  const tight = inner.every((block, at) => block.kind !== "paragraph" || at === 0);
  const made = inner.flatMap((block) =>
    tight && block.kind === "paragraph" ? partElements(block.parts) : [blockElement(block)]);
  return element("li", { class: box && "task", value: number }, box, ...made);
}

function codeElement({ language, text }) {
  const code = element("code", {}, new Text(visible(text)));
  const copy = element("button",
    { type: "button", class: "copy", onclick: () => copyText(code.textContent, copy) }, "Copy");
  const name = language || "text";
  return element("figure", { class: "code", dir: "ltr", "data-language": language },
    element("figcaption", {}, name, copy),
    element("pre", { tabindex: 0, role: "region", "aria-label": `Code, ${name}` }, code));
}

function tableElement({ align, rows: [head, ...rows] }) {
  const cell = (tag) => (parts, at) =>
    element(tag, { class: align[at], scope: tag === "th" && "col" }, ...partElements(parts));
  return element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" },
    element("table", {},
      element("thead", {}, element("tr", {}, ...head.map(cell("th")))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell("td")))))));
}

// Text that grows. Blocks that are complete stay as they are; only the last is made again, or, if
// it is code, gets what is new. A long layout makes the next one wait, so that it takes at most a
// fifth of the time.
function growing(box, follow) {
  let text = "", from = 0, last = null, timer = 0, pace = 16;
  function paint() {
    clearTimeout(timer);
    timer = 0;
    const begun = performance.now();
    const tail = blocks(text.slice(from));
    if (!(tail.length === 1 && extended(last, tail[0]))) {
      last?.remove();
      const made = blockElements(tail);
      box.append(...made);
      last = made.at(-1) ?? null;
      from += tail.at(-1)?.at ?? 0;
    }
    follow();
    pace = Math.max(16, 4 * (performance.now() - begun));
  }
  return {
    show(whole) {
      if (whole === text) return;
      text = whole;
      timer ||= setTimeout(paint, pace);
    },
    stop() {
      clearTimeout(timer);
    },
  };
}

function extended(last, block) {
  if (block.kind !== "code" || last?.dataset.language !== block.language) return false;
  const node = last.querySelector("pre code").firstChild, text = visible(block.text);
  if (!text.startsWith(node.data)) return false;
  node.appendData(text.slice(node.length));
  return true;
}

// -- messages ----------------------------------------------------------------------------------

function thoughtElement(text, open = false) {
  return element("details", { class: "fold", open },
    element("summary", {}, "Reasoning"), element("p", { dir: "auto" }, text));
}

function callElement({ function: { name, arguments: given } }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch { /* as the model wrote it */ }
  return element("details", { class: "fold call", open: true },
    element("summary", {}, "Calls ", element("code", {}, visible(name) || "a tool without a name")),
    element("pre", { tabindex: 0, role: "region", "aria-label": "Arguments" }, visible(shown)));
}

function resultElement(message, facts) {
  const text = textOf(message), what = facts.failed ? "Failure of " : "Result of ";
  return element("details", { class: facts.failed ? "fold result wrong" : "fold result", open: text.length < 600 },
    element("summary", {}, what, element("code", {}, visible(message.name ?? "the call"))),
    element("pre", { tabindex: 0, role: "region", "aria-label": "Result" }, visible(text)));
}

const ENDS = {
  answer: "", nothing: "The model said nothing", steps: "All steps of the budget were used",
  tokens: "All tokens of the budget were used", seconds: "The time of the budget was used",
  model: "The model failed",
};

// What is known of a message, in words.
function factsText({ step, tokens, seconds, wait, finish, end, stopped, empty }) {
  const writing = seconds - (wait ?? 0);
  const said = [
    step && `step ${step}`,
    stopped && "stopped",
    empty && "the model said nothing",
    tokens && `${tokens.toLocaleString("en")} tokens`,
    tokens > 1 && wait !== undefined && writing > 0 && `${((tokens - 1) / writing).toFixed(0)} per second`,
    wait >= 1 ? `first after ${wait.toFixed(1)} s` : step && seconds && `${seconds.toFixed(1)} s`,
    finish === "length" && "cut off at the limit of tokens",
    end && [ENDS[end.ended] ?? end.ended, end.reason].filter(Boolean).join(": "),
  ];
  return said.filter(Boolean).join(" · ");
}

// Copying has to work over plain http too, where the clipboard is closed to pages.
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const held = element("textarea", {}, text);
    document.body.append(held);
    held.select();
    document.execCommand("copy");
    held.remove();
    button.focus();
  }
  say("Copied.");
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

// Words for screen readers.
function say(text) {
  document.getElementById("said").textContent = text;
}

// Runs the script of the chat page in node, with as much of a browser as it needs.
//
// stdin: {script, stream: [pieces of the response body], frames: whether frames are drawn}.
// stdout: {text, notes, written: characters that were put into the page, paragraphs, frames}.

const { script, stream, frames } = JSON.parse(require("fs").readFileSync(0, "utf8"));
let written = 0, drawn = 0;

class Node {
  constructor(data = "") { this.data = data; }
  get length() { return this.data.length; }
  get textContent() { return this.data; }
  appendData(more) { written += more.length; this.data += more; }
}

class Element {
  constructor(tag) {
    Object.assign(this, { tag, nodes: [], className: "", attributes: {}, style: {}, value: "" });
    this.listeners = {};
    this.classList = { toggle() {} };
    this.scrollHeight = this.scrollTop = this.clientHeight = 0;
  }
  set textContent(text) { written += text.length; this.nodes = text ? [new Node(text)] : []; }
  get textContent() { return this.nodes.map((node) => node.textContent).join(""); }
  append(...nodes) {
    this.nodes.push(...nodes.map((node) => typeof node === "string" ? new Node(node) : node));
  }
  replaceChildren(...nodes) { this.nodes = nodes; }
  querySelector(tag) { return this.nodes.find((node) => node.tag === tag); }
  setAttribute(name, value) { this.attributes[name] = value; }
  toggleAttribute(name, on) { this.attributes[name] = on; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  focus() {}
}

const found = {};
const storage = { getItem: () => null, setItem() {} };
Object.assign(globalThis, {
  Text: Node,
  document: {
    getElementById: (id) => found[id] ??= new Element(id),
    createElement: (tag) => new Element(tag),
    addEventListener() {},
  },
  localStorage: storage,
  sessionStorage: storage,
  requestAnimationFrame: (draw) => frames ? setTimeout(() => { drawn += 1; draw(); }, 5) : 1,
  cancelAnimationFrame: clearTimeout,
  fetch: async (path) => path === "v1/models"
    ? { ok: true, json: async () => ({ data: [{ id: "model" }] }) }
    : { ok: true, body: new ReadableStream({
        async pull(controller) {
          if (!stream.length) return controller.close();
          controller.enqueue(new TextEncoder().encode(stream.shift()));
        },
      }) },
});

(0, eval)(script);
setTimeout(async () => {
  found.text.value = "hi";
  found.form.listeners.submit({ preventDefault() {} });
  while (found.send.textContent !== "Send" || !found.log.nodes.at(-1).nodes.length) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const turn = found.log.nodes.at(-1).nodes;
  const paragraphs = turn.filter((node) => node.tag === "p");
  console.log(JSON.stringify({
    text: paragraphs.map((node) => node.textContent).join("\n"),
    notes: turn.filter((node) => node.tag === "div").map((node) => [node.className, node.textContent]),
    longest: Math.max(...paragraphs.map((node) => node.textContent.length)),
    paragraphs: paragraphs.length, written, drawn,
  }));
}, 20);

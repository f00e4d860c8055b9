// -- a dialogue is a tree of messages ----------------------------------------------------------
//
// chat: {id, title, changed, system, nodes, leaf}. A node is {parent, message, facts}; nodes are
// named by their place in `nodes`, and a parent comes before its children. `leaf` is the end of
// the path that is shown. A message has OpenAI's form; facts are what is known of it, such as
// seconds and tokens.

function newChat(system = "") {
  // `crypto.randomUUID` is missing where the page comes over http from another machine.
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  return { id, title: "", changed: Date.now(), system, nodes: [], leaf: null };
}

function addNode(chat, message, parent = chat.leaf, facts = {}) {
  chat.leaf = chat.nodes.push({ parent, message, facts }) - 1;
  if (!chat.title && message.role === "user") chat.title = titleOf(textOf(message));
  return chat.leaf;
}

const titleOf = (text) => [...text.trim().replace(/\s+/g, " ")].slice(0, 80).join("");

function pathOf(chat) {
  const path = [];
  for (let at = chat.leaf; at !== null; at = chat.nodes[at].parent) path.push(at);
  return path.reverse();
}

const childrenOf = (chat, parent) =>
  [...chat.nodes.keys()].filter((at) => chat.nodes[at].parent === parent);

const siblingsOf = (chat, at) => childrenOf(chat, chat.nodes[at].parent);

// Show the branch of a node, down to its newest end.
function turnTo(chat, at) {
  for (let next = at; next !== undefined; next = childrenOf(chat, at).at(-1)) at = next;
  chat.leaf = at;
}

function messagesOf(chat) {
  const system = chat.system.trim();
  const said = pathOf(chat).map((at) => chat.nodes[at].message);
  return [...(system ? [{ role: "system", content: system }] : []), ...said];
}

function textOf({ content }) {
  if (Array.isArray(content)) return content.map((part) => part.text ?? `[${part.type}]`).join("");
  return content ?? "";
}

// The first call at the end of the path that has no result yet.
function openCall(chat) {
  const answered = new Set();
  for (let at = chat.leaf; at !== null; at = chat.nodes[at].parent) {
    const message = chat.nodes[at].message;
    if (message.role === "tool") answered.add(message.tool_call_id);
    else return (message.tool_calls ?? []).find((call) => !answered.has(call.id));
  }
}

// A change of a streamed message.
function takeDelta(message, delta) {
  message.content += delta.content ?? "";
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) message.reasoning_content = (message.reasoning_content ?? "") + thought;
  for (const { index, id, function: called } of delta.tool_calls ?? []) {
    const calls = (message.tool_calls ??= []);
    calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } };
    calls[index].function.name += called?.name ?? "";
    calls[index].function.arguments += called?.arguments ?? "";
  }
}

// -- files -------------------------------------------------------------------------------------

// OpenAI's form of the path that is shown, which any tool reads, and the whole tree.
function exported(chats) {
  const all = chats.map((chat) => ({ title: chat.title, messages: messagesOf(chat), tree: chat }));
  return JSON.stringify(all.length === 1 ? all[0] : all, null, 1);
}

// The chats in a file: of this page, with OpenAI's messages, or the trace of an agent.
function imported(text) {
  const values = valuesIn(text);
  if (values.some((value) => value?.kind === "question")) return [chatOfTrace(values)];
  if (values.length && values.every((value) => typeof value?.role === "string")) {
    return [chatOfMessages(values)];
  }
  return values.map((value) => {
    if (value?.tree) return checkedTree(value.tree);
    if (Array.isArray(value?.messages)) return chatOfMessages(value.messages, value.title);
    throw new Error("This file holds no chats and no trace of an agent.");
  });
}

function valuesIn(text) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value) ? value : [value];
  } catch {
    const lines = text.split("\n");
    return lines.flatMap((line, number) => {
      try {
        return line.trim() ? [JSON.parse(line)] : [];
      } catch {
        throw new Error(`Line ${number + 1} of the file is no JSON.`);
      }
    });
  }
}

function chatOfMessages(messages, title) {
  const chat = newChat();
  for (const message of messages) {
    checkMessage(message);
    if (message.role === "system" && !chat.nodes.length) chat.system = textOf(message);
    else addNode(chat, message);
  }
  if (typeof title === "string") chat.title = titleOf(title);
  return chat;
}

function checkMessage(message) {
  const content = message?.content ?? "";
  const listed = Array.isArray(content) && content.every((part) => part && typeof part === "object");
  const calls = message?.tool_calls ?? [];
  const called = Array.isArray(calls) && calls.every((call) => typeof call?.function?.name === "string");
  if (typeof message?.role !== "string" || (typeof content !== "string" && !listed) || !called) {
    throw new Error("A message in the file has not the form of OpenAI's messages.");
  }
}

function checkedTree({ title, system, nodes, leaf }) {
  const known = Array.isArray(nodes) && (leaf === null || nodes[leaf]);
  const ordered = known && nodes.every(({ parent }, at) =>
    parent === null || (Number.isInteger(parent) && parent >= 0 && parent < at));
  if (!ordered) throw new Error("The tree of a chat in the file is broken.");
  const chat = newChat(String(system ?? ""));
  for (const { parent, message, facts } of nodes) {
    checkMessage(message);
    addNode(chat, message, parent, { ...facts });
  }
  return Object.assign(chat, { leaf, title: titleOf(String(title ?? "")) });
}

// `culm agent` writes a line for each event: question, answer, call, end.
function chatOfTrace(events) {
  const chat = newChat();
  let waiting = [];
  for (const event of events) {
    const { step, seconds, tokens } = event;
    if (event.kind === "question") {
      addNode(chat, { role: "user", content: String(event.question) });
    } else if (event.kind === "answer") {
      const tool_calls = (event.calls ?? []).map(({ name, arguments: given }, number) => (
        { id: `${step}.${number}`, type: "function", function: { name, arguments: given } }));
      waiting = tool_calls.map((call) => call.id);
      addNode(chat, {
        role: "assistant", content: String(event.content ?? ""),
        ...(event.reasoning ? { reasoning_content: String(event.reasoning) } : {}),
        ...(tool_calls.length ? { tool_calls } : {}),
      }, chat.leaf, { step, seconds, tokens, finish: event.complete === false ? "length" : "stop" });
    } else if (event.kind === "call") {
      const message = { role: "tool", tool_call_id: waiting.shift() ?? "", name: event.name };
      addNode(chat, { ...message, content: String(event.result) }, chat.leaf,
        { step, seconds, failed: event.failed });
    } else if (event.kind === "end" && chat.leaf !== null) {
      const { ended, reason, steps } = event;
      Object.assign(chat.nodes[chat.leaf].facts, { end: { ended, reason, steps, tokens, seconds } });
    }
  }
  return chat;
}

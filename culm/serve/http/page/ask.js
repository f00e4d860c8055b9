// -- asking ------------------------------------------------------------------------------------

function asked() {
  const number = (name) => (settings[name] === "" ? {} : { [name]: Number(settings[name]) });
  const tools = settings.tools.trim() ? { tools: JSON.parse(settings.tools) } : {};
  // Reasoning is of its own turn only: most templates leave it out, and the server refuses it then.
  const messages = messagesOf(chat).map(({ reasoning_content, ...message }) => message);
  return {
    model: $("model").value, messages, ...tools,
    ...Object.assign({}, ...["temperature", "top_p", "max_tokens", "seed"].map(number)),
  };
}

// Asks for the message after the path that is shown.
async function reply() {
  await stop();
  if (toolsFault()) return problem(`The tools in the settings cannot be used. ${toolsFault()}`, reply);
  const mine = chat, parent = chat.leaf, request = asked();
  const message = { role: "assistant", content: "" };
  const at = addNode(chat, message);
  $("problem").hidden = true;
  const turn = turnElement(at);
  $("log").append(turn);
  const abort = new AbortController();
  running = { abort, done: null };
  running.done = write(mine, at, parent, turn, request, abort.signal);
  showSend();
  follow(true);
  await running?.done;
}

async function write(mine, at, parent, turn, request, signal) {
  const node = mine.nodes[at], { message } = node;
  const update = liveView(turn, message);
  let failure = null;
  try {
    node.facts = await answer(request, message, signal, update);
  } catch (error) {
    if (error.name === "AbortError") node.facts = { model: request.model, stopped: true };
    else failure = error;
  }
  running = null;
  const said = message.content || message.reasoning_content || message.tool_calls;
  if (!said && node.facts.finish) node.facts.empty = true;
  const stays = said || node.facts.empty;
  if (!stays) {
    mine.nodes.pop();
    mine.leaf = parent;
  }
  save(mine);
  update.end();
  if (mine === chat) finish(stays ? at : null, turn, failure);
}

function finish(at, turn, failure) {
  if (at === null) turn.remove();
  else turn.replaceWith(turnElement(at));
  showSend();
  showUsed();
  if (failure) {
    const request = failure.request ? ` (request ${failure.request})` : "";
    problem(failure.message + request, at === null ? reply : () => writeAgain(at));
    if (failure.status === 0 || failure.status === 401) connect();
  } else if (at === null) problem("Stopped before the answer began.", reply);
  else say(`The answer is complete. ${factsText(chat.nodes[at].facts)}`);
  follow();
}

async function stop() {
  running?.abort.abort();
  await running?.done;
}

async function send() {
  const text = $("text").value.trim();
  if (running) return stop();
  if (!text) return;
  if (!contexts.size) return banner("Not connected yet; the message stays here. Trying again …");
  const open = openCall(chat), last = chat.nodes[chat.leaf];
  if (open) {
    const { id, function: { name } } = open;
    addNode(chat, { role: "tool", tool_call_id: id, name, content: text });
  } else {                    // a message without an answer is replaced, as two in a row confuse
    const parent = last?.message.role === "user" ? last.parent : chat.leaf;
    addNode(chat, { role: "user", content: text }, parent);
  }
  compose("");
  save(chat);
  show();
  follow(true);
  if (!openCall(chat)) await reply();
}

async function writeAgain(at) {
  await stop();
  chat.leaf = chat.nodes[at].parent;
  show();
  $("text").focus();
  await reply();
}

// A changed message is a branch of its own; a changed question is asked.
async function edit(at) {
  await stop();
  const { message, parent, facts } = chat.nodes[at];
  const turn = $("log").querySelector(`[data-node="${at}"]`);
  const done = () => { show(); $("text").focus(); };
  async function change() {
    const content = box.value.trim();
    if (!content || content === textOf(message)) return done();
    addNode(chat, { ...message, content }, parent, { model: facts.model });
    save(chat);
    done();
    if (message.role === "user") await reply();
  }
  const box = element("textarea", { "aria-label": "Message", dir: "auto", rows: 1 }, textOf(message));
  const keys = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); done(); }
    if (sends(event)) { event.preventDefault(); change(); }
  };
  box.addEventListener("keydown", keys);
  box.addEventListener("input", () => grow(box));
  turn.classList.add("editing");
  turn.replaceChildren(box, element("footer", {},
    element("button", { type: "button", class: "quiet", onclick: done }, "Cancel"),
    element("button", { type: "button", class: "strong", onclick: change },
      message.role === "user" ? "Send" : "Keep")));
  grow(box);
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
}

// -- the turns of the chat ---------------------------------------------------------------------

const NAMES = { user: "You", assistant: "Model", tool: "Tool", system: "System" };

function show() {
  $("log").replaceChildren(...pathOf(chat).map(turnElement));
  $("empty").hidden = chat.nodes.length > 0;
  $("system").value = chat.system;
  document.title = chat.title ? `${chat.title} · Culm` : "Culm";
  $("problem").hidden = true;
  const last = chat.nodes[chat.leaf]?.message;
  if (last?.role === "user") problem("This message has no answer.", reply);
  showUsed();
  showSend();
}

function turnElement(at) {
  const { message, facts } = chat.nodes[at];
  const { role } = message;
  const turn = element("article",
    { class: `turn ${role}`, "aria-label": NAMES[role] ?? role, "data-node": at });
  if (role === "assistant") {
    if (message.reasoning_content) turn.append(thoughtElement(message.reasoning_content));
    turn.append(
      element("div", { class: "words" }, ...blockElements(blocks(textOf(message)))),
      element("div", { class: "calls" }, ...(message.tool_calls ?? []).map(callElement)));
  } else if (role === "tool") turn.append(resultElement(message, facts));
  else turn.append(element("p", { class: "bubble", dir: "auto" }, textOf(message)));
  turn.append(actionsElement(at));
  return turn;
}

function actionsElement(at) {
  const { message, facts } = chat.nodes[at], { role } = message;
  const copy = iconButton("copy", "Copy", () => copyText(textOf(message), copy));
  return element("footer", { class: "actions" },
    branchElement(at),
    copy,
    role !== "tool" ? iconButton("edit", "Edit", () => edit(at)) : null,
    role === "assistant" ? iconButton("again", "Write again", () => writeAgain(at)) : null,
    element("span", { class: "note" }, factsText(facts)));
}

// Where a message has siblings: which of them is shown, and arrows to the others.
function branchElement(at) {
  const all = siblingsOf(chat, at), place = all.indexOf(at);
  if (all.length < 2) return null;
  const turn = (by) => async () => {
    const next = all[place + by];
    if (next === undefined) return;
    await stop();
    turnTo(chat, next);
    save(chat);
    const { scrollTop } = $("scroll");
    show();
    $("scroll").scrollTop = scrollTop;
    const [back, on] = $("log").querySelectorAll(`[data-node="${next}"] .branch button`);
    (by < 0 && !back.disabled || on.disabled ? back : on).focus();
  };
  const keys = ({ key }) => ({ ArrowLeft: turn(-1), ArrowRight: turn(1) })[key]?.();
  return element("span", { class: "branch", role: "group", "aria-label": "Versions", onkeydown: keys },
    iconButton("back", "Earlier version", turn(-1), { disabled: place === 0 }),
    element("span", {}, `${place + 1} / ${all.length}`),
    iconButton("on", "Later version", turn(1), { disabled: place === all.length - 1 }));
}

function problem(text, retry) {
  $("problem").replaceChildren(text, " ", element("button",
    { type: "button", class: "quiet", onclick: () => { $("problem").hidden = true; retry(); } }, "Try again"));
  $("problem").hidden = false;
  follow();
}

function showUsed() {
  const last = pathOf(chat).map((at) => chat.nodes[at].facts.context).findLast(Boolean);
  const limit = contexts.get($("model").value);
  const of = limit ? ` of ${limit.toLocaleString("en")}` : "";
  $("used").textContent = last ? `${last.toLocaleString("en")}${of} tokens of context` : "";
  $("used").classList.toggle("wrong", last > 0.9 * limit);
}

function showSend() {
  const label = running ? "Stop" : "Send";
  $("send").replaceChildren(icon(running ? "stop" : "send"));
  $("send").setAttribute("aria-label", label);
  $("send").title = label;
  $("log").setAttribute("aria-busy", running !== null);    // read aloud once it is whole
  const open = running ? null : openCall(chat);
  $("text").placeholder = open ? `Result of ${visible(open.function.name)}` : "Write a message";
}

// The page follows the end of the text until the reader scrolls up.
let sticks = true, lastTop = 0;
function onScroll() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  if (scrollHeight - scrollTop - clientHeight < 40) sticks = true;
  else if (scrollTop < lastTop) sticks = false;
  lastTop = scrollTop;
  $("latest").hidden = sticks;
}

function follow(always = false) {
  sticks ||= always;
  if (sticks) $("scroll").scrollTop = $("scroll").scrollHeight;
}

// Shows a message as it grows.
function liveView(turn, message) {
  const words = growing(turn.querySelector(".words"), follow);
  const note = turn.querySelector(".note");
  let thought = null, calls = "";
  turn.classList.add("writing");
  note.textContent = "waiting";
  function update(pieces, seconds) {
    if (message.reasoning_content) {
      thought ??= turn.insertBefore(thoughtElement(""), turn.firstChild).lastChild;
      thought.textContent = message.reasoning_content;
    }
    words.show(message.content);
    if (message.tool_calls && JSON.stringify(message.tool_calls) !== calls) {
      calls = JSON.stringify(message.tool_calls);
      turn.querySelector(".calls").replaceChildren(...message.tool_calls.filter(Boolean).map(callElement));
    }
    const what = thought && !message.content ? "thinking" : pieces ? "writing" : "waiting";
    note.textContent = seconds > 1 ? `${what} · about ${(pieces / seconds).toFixed(0)} per second` : what;
  }
  return Object.assign(update, { end: words.stop });
}

// -- chats and files ---------------------------------------------------------------------------

async function open(other) {
  await stop();
  chat = other;
  show();
  follow(true);
  $("chats").close();
  $("text").focus();
}

async function listChats() {
  const all = (await stored("getAll")).sort((a, b) => b.changed - a.changed);
  const row = (one) => element("li", {},
    element("button", { type: "button", class: "row", "aria-current": one.id === chat.id && "true",
      onclick: () => open(one.id === chat.id ? chat : one) },
      element("span", { class: "title", dir: "auto" }, one.title || "Untitled"),
      element("span", { class: "note" }, new Date(one.changed).toLocaleDateString())),
    iconButton("remove", `Delete ${one.title || "this chat"}`, () => remove(one)));
  $("list").replaceChildren(...all.map(row));
  $("none").hidden = all.length > 0;
}

async function remove(one) {
  if (one.id === chat.id) {
    await stop();             // first, as an answer that ends is stored
    chat = newChat(chat.system);
    show();
  }
  await stored("delete", one.id);
  await listChats();
  $("chats").querySelector("button").focus();
}

async function readFiles(files) {
  try {
    const found = (await Promise.all([...files].map((file) => file.text()))).flatMap(imported);
    for (const one of found) await save(one);
    if (found.length) await open(found[0]);
  } catch (error) {
    banner(error.message);
    $("chats").close();
  }
}

const stamp = () => new Date().toISOString().slice(0, 10);

// -- events ------------------------------------------------------------------------------------

function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function compose(text) {
  $("text").value = text;
  sessionStorage.setItem("culm.draft", text);
  grow($("text"));
}

// Enter sends, but not the one that ends a composition (229: Safari's), nor on a touch screen.
function sends({ key, shiftKey, isComposing, keyCode }) {
  const touch = matchMedia("(pointer: coarse)").matches;
  return key === "Enter" && !shiftKey && !isComposing && keyCode !== 229 && !touch;
}

function useSettings() {
  document.documentElement.dataset.theme = settings.theme;
  for (const name of ["temperature", "top_p"]) $(`${name}_shown`).value = Number(settings[name]);
  $("tools_fault").textContent = toolsFault();
}

function toolsFault() {
  try {
    const list = Array.isArray(JSON.parse(settings.tools.trim() || "[]"));
    return list ? "" : "They are no list.";
  } catch { return "They are no JSON."; }
}

function connectComposer() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("text").addEventListener("input", () => compose($("text").value));
  $("text").addEventListener("keydown", (event) => {
    if (sends(event)) { event.preventDefault(); if (!running) send(); }
    if (event.key === "ArrowUp" && !$("text").value) {
      const mine = pathOf(chat).findLast((at) => chat.nodes[at].message.role === "user");
      if (mine !== undefined) { event.preventDefault(); edit(mine); }
    }
  });
  document.addEventListener("keydown", (event) => {
    const free = !document.querySelector("dialog[open]") && !event.ctrlKey && !event.metaKey;
    if (event.key === "Escape" && free) stop();
    if (event.key === "/" && free && !/TEXTAREA|INPUT|SELECT/.test(event.target.tagName)) {
      event.preventDefault();
      $("text").focus();
    }
  });
  $("scroll").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(() => follow()).observe($("scroll"));
  $("latest").addEventListener("click", () => { follow(true); $("text").focus(); });
}

function connectDialogs() {
  $("new").addEventListener("click", () => open(newChat(chat.system)));
  $("show_chats").addEventListener("click", async () => { await listChats(); $("chats").showModal(); });
  $("show_settings").addEventListener("click", () => $("settings").showModal());
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); });
    dialog.querySelector(".close")?.addEventListener("click", () => dialog.close());
  }
  $("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("culm.key", $("key").value.trim());
    $("locked").close();
    connect();
  });
}

function connectFiles() {
  $("file").addEventListener("change", async () => { await readFiles($("file").files); $("file").value = ""; });
  $("import").addEventListener("click", () => $("file").click());
  $("export").addEventListener("click", () => download(`chat-${stamp()}.json`, exported([chat])));
  $("export_all").addEventListener("click", async () =>
    download(`chats-${stamp()}.json`, exported(await stored("getAll"))));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    readFiles(event.dataTransfer.files);
  });
  // A page that is closed has no time to store an answer that is being written.
  setInterval(() => { if (running) save(chat); }, 1000);
}

function connectSettings() {
  for (const name of Object.keys(DEFAULTS)) {
    if (name !== "model") $(name).value = settings[name];
    $(name).addEventListener("input", () => {
      settings[name] = $(name).value;
      keep("settings", settings);
      useSettings();
      if (name === "model") { $("model").title = $("model").value; showUsed(); }
    });
  }
  $("system").addEventListener("input", () => {
    chat.system = $("system").value;
    keep("system", chat.system);
    save(chat);
  });
  $("reset").addEventListener("click", () => {
    Object.assign(settings, DEFAULTS, { model: settings.model });
    keep("settings", settings);
    for (const name of Object.keys(DEFAULTS)) if (name !== "model") $(name).value = settings[name];
    useSettings();
  });
}

connectComposer();
connectDialogs();
connectFiles();
connectSettings();
useSettings();
compose(sessionStorage.getItem("culm.draft") ?? "");
show();
connect();

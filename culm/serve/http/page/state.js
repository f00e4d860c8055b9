// -- the state of the page ---------------------------------------------------------------------

const DEFAULTS = { temperature: 0, top_p: 1, max_tokens: "", seed: "", tools: "", theme: "", model: "" };
const settings = { ...DEFAULTS, ...kept("settings") };
let chat = newChat(kept("system") ?? "");
let contexts = new Map();     // length of the context of each served model
let running = null;           // the answer that is being written: {abort, done}

// Chats are in this browser; without a database, as in some private windows, they last as long as
// the page.
const database = new Promise((resolve) => {
  const opening = indexedDB.open("culm", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("chats", { keyPath: "id" });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => resolve(null);
});

async function stored(method, ...given) {
  const open = await database;
  if (!open) return [];
  const asked = open.transaction("chats", "readwrite").objectStore("chats")[method](...given);
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function save(changed) {
  if (!changed.nodes.length) return;
  changed.changed = Date.now();
  await stored("put", changed).catch(() => banner("This browser has no room left for chats."));
}

// -- the connection ----------------------------------------------------------------------------

let again = 0;
async function connect() {
  clearTimeout(again);
  try {
    const { data } = await (await call("v1/models")).json();
    contexts = new Map(data.map(({ id, max_model_len }) => [id, max_model_len]));
    const chosen = contexts.has(settings.model) ? settings.model : data[0].id;
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
    $("model").value = $("model").title = chosen;
    $("model").disabled = data.length < 2;
    banner("");
    showUsed();
  } catch (error) {
    if (error.status === 401) return askKey();
    const what = error.status ? error.message : "No connection to the server.";
    banner(`${what} Trying again …`);
    again = setTimeout(connect, 3000);
  }
}

function banner(text) {
  if ($("banner").textContent !== text) $("banner").textContent = text;
}

function askKey() {
  const refused = sessionStorage.getItem("culm.key") !== null;
  $("refused").textContent = refused ? "The server refused this key." : "";
  if (!$("locked").open) $("locked").showModal();
}

// -- the state of the page, and the questions to the server -------------------------------------

const REFRESH = 1000;         // milliseconds between two questions
const COLOURS = 8;
const DEFAULTS = { x: "step", smooth: 0.02, log_x: false, log_y: false, theme: "" };
const settings = { ...DEFAULTS, ...kept("board") };
let runs = [];
let chosen = null;            // colours of the chosen runs, by key; null: nobody chose yet
let zoom = null;              // the part of x that is shown
let curves = new Map();       // {version, curves} of each chosen run
let asked = "";               // how the curves were asked for
let details = {};             // {of, text}: the runs whose settings and samples are shown
const charts = new Map();     // by metric
const groups = new Map();     // by title

const board = {
  range: [0, 1],
  get axis() { return settings.x; },
  get logX() { return settings.log_x; },
  get logY() { return settings.log_y; },
  get theme() { return `${settings.theme}${matchMedia("(prefers-color-scheme: dark)").matches}`; },
  zoom(start, end) { setZoom([start, end]); },
  whole() { setZoom(null); },
};

function setZoom(range) {
  zoom = range;
  $("whole").hidden = !zoom;
  if (zoom) board.range = zoom;
  refresh();
}

function choose(key, wanted) {
  if (wanted) {
    const used = new Set(chosen.values()), all = [...Array(COLOURS).keys()];
    chosen.set(key, all.find((colour) => !used.has(colour)) ?? chosen.size % COLOURS);
  } else chosen.delete(key);
  keep("board.runs", [...chosen]);
  refresh();
}

// All of a few runs, or those that run, or the newest.
function firstChoice() {
  const known = new Set(runs.map(({ key }) => key));
  const before = (kept("board.runs") ?? []).filter(([key]) => known.has(key));
  if (before.length) return new Map(before);
  const live = runs.filter(({ state }) => state === "running");
  const newest = [...runs].sort((a, b) => b.updated.localeCompare(a.updated));
  const some = runs.length <= 6 ? sorted(runs) : live.length ? live : newest.slice(0, 2);
  return new Map(some.slice(0, COLOURS).map(({ key }, at) => [key, at]));
}

const chosenRuns = () => sorted(runs).filter(({ key }) => chosen.has(key))
  .map((run) => ({ ...run, colour: chosen.get(run.key) }));

// -- asking --------------------------------------------------------------------------------------

let turn = 0, timer = 0;

// Asks now and again a second later; of several at once, the last one counts.
async function refresh() {
  const mine = ++turn;
  clearTimeout(timer);
  try {
    await ask(() => mine === turn);
  } catch (error) {
    if (mine !== turn) return;
    if (error.status === 401) return askKey();
    const known = error instanceof Refused;
    if (!known) console.error(error);
    put($("banner"), `${known ? error.message : `The page failed: ${error.message}`} Trying again …`);
  }
  if (mine === turn) timer = setTimeout(refresh, REFRESH);
}

async function ask(current) {
  if (document.hidden) return;
  const found = await (await call("runs")).json();
  if (!current()) return;
  runs = found.runs;
  if (!chosen && runs.length && found.complete) chosen = firstChoice();
  listRuns(runs, chosen ?? new Map(), $("filter").value, choose);
  if (!found.complete) return;
  showEmpty(found.folders);
  if (!chosen) return;
  const shown = chosenRuns();
  const query = new URLSearchParams({ x: settings.x, smooth: settings.smooth, log: settings.log_x });
  if (zoom) { query.set("start", zoom[0]); query.set("end", zoom[1]); }
  if (asked !== `${query}`) curves.clear();
  asked = `${query}`;
  for (const { key } of shown) query.append("run", `${key}@${curves.get(key)?.version ?? ""}`);
  const news = shown.length ? await (await call(`curves?${query}`)).json() : {};
  if (!current()) return;
  for (const [key, one] of Object.entries(news)) curves.set(key, one);
  showCharts(shown);
  await askDetails(shown, Object.keys(news).length > 0, current);
  put($("banner"), notice(shown));
}

async function askDetails(shown, changed, current) {
  const of = JSON.stringify(shown.map(({ key, colour, name }) => [key, colour, name]));
  if (!changed && of === details.of) return;
  const query = new URLSearchParams(shown.map(({ key }) => ["run", key]));
  const text = await (await call(`details?${query}`)).text();
  if (!current() || (of === details.of && text === details.text)) return;
  details = { of, text };
  showDetails(JSON.parse(text), shown);
}

function notice(shown) {
  const reading = shown.filter(({ read }) => read < 1).map(({ name }) => name);
  const axis = $("x").selectedOptions[0].textContent;
  const without = shown.filter(({ key, step }) => step && !Object.keys(curves.get(key)?.curves ?? {}).length);
  return [
    reading.length && `A sample of ${reading.join(", ")} is shown until the file is read.`,
    without.length && `${without.map(({ name }) => name).join(", ")}: the number of ${axis} is not known.`,
  ].filter(Boolean).join(" ");
}

// -- what is shown --------------------------------------------------------------------------------

function showEmpty(folders) {
  const [title, text] = !runs.length
    ? ["No runs yet", `A run appears here as soon as it starts in ${folders.join(", ")}.`]
    : !chosen.size ? ["Choose a run", "Its curves appear here."] : ["", ""];
  $("empty").hidden = !title;
  if ($("empty").textContent !== title + text) {
    $("empty").replaceChildren(element("h2", {}, title), element("p", {}, text));
  }
}

// The chosen curves by metric. What was measured on held-out text is in the chart of its metric.
function byMetric(shown) {
  const found = new Map();
  for (const run of shown) {
    for (const [name, curve] of Object.entries(curves.get(run.key)?.curves ?? {})) {
      const held = name.startsWith("eval."), metric = name.replace(/^eval\./, "");
      if (!curve.x.length) continue;
      if (!found.has(metric)) found.set(metric, []);
      found.get(metric).push({ run, held, ...curve });
    }
  }
  return found;
}

function showCharts(shown) {
  const found = byMetric(shown);
  const ends = [...found.values()].flat().map(({ x }) => [x[0], x.at(-1)]);
  const [start, end] = [Math.min(...ends.map(([one]) => one)), Math.max(...ends.map(([, one]) => one))];
  board.range = zoom ?? (start < end ? [start, end] : [start * 0.9 - 1e-9, start * 1.1 + 1e-9]);
  for (const [name, chart] of charts) {
    if (!found.has(name)) {
      chart.remove();
      charts.delete(name);
    }
  }
  const left = new Set(found.keys());
  for (const [title, names] of GROUPS) {
    showGroup(title, names.filter((name) => left.delete(name)), found);
  }
  showGroup("More", [...left].sort(), found);
}

function showGroup(title, names, found) {
  if (!groups.has(title)) {
    const grid = element("div", { class: "charts" });
    const group = element("details", { class: "group", open: title !== "More", ontoggle: () => showCharts(chosenRuns()) },
      element("summary", {}, title), grid);
    groups.set(title, { group, grid });
    $("sections").append(group);
  }
  const { group, grid } = groups.get(title);
  group.hidden = !names.length;
  if (!group.open) return;
  names.forEach((name, at) => {
    if (!charts.has(name)) charts.set(name, new Chart(name, board));
    const chart = charts.get(name);
    if (grid.children[at] !== chart.root) grid.insertBefore(chart.root, grid.children[at] ?? null);
    chart.show(found.get(name));
  });
}

// -- events ---------------------------------------------------------------------------------------

function askKey() {
  const refused = sessionStorage.getItem("culm.key") !== null;
  $("refused").textContent = refused ? "The server refused this key." : "";
  if (!$("locked").open) $("locked").showModal();
}

function useSettings() {
  document.documentElement.dataset.theme = settings.theme;
  for (const name of ["x", "smooth"]) $(name).value = settings[name];
  for (const name of ["log_x", "log_y"]) $(name).checked = settings[name];
  keep("board", settings);
}

function connect() {
  for (const name of ["x", "smooth", "log_x", "log_y"]) {
    $(name).addEventListener("input", () => {
      settings[name] = $(name).type === "checkbox" ? $(name).checked : $(name).value;
      useSettings();
      if (name.includes("x")) setZoom(null);
      else refresh();
    });
  }
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (!settings.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    settings.theme = dark ? "light" : "dark";
    useSettings();
    showCharts(chosenRuns());
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showCharts(chosenRuns()));
  $("whole").addEventListener("click", () => setZoom(null));
  $("filter").addEventListener("input", () => listRuns(runs, chosen, $("filter").value, choose));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  $("unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("culm.key", $("key").value.trim());
    $("locked").close();
    refresh();
  });
}

if (innerWidth <= 760) $("panel").open = false;
connect();
useSettings();
refresh();

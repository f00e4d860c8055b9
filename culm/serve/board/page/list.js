// -- the list of runs ---------------------------------------------------------------------------

const rows = new Map();   // elements of each run, by key: they are changed and not made again

function rowOf(run, choose) {
  if (rows.has(run.key)) return rows.get(run.key);
  const box = element("input", { type: "checkbox", onchange: () => choose(run.key, box.checked) });
  const name = element("span", { class: "name", dir: "auto" });
  const state = element("span", { class: "state" }), facts = element("span", { class: "facts" });
  const bar = element("progress", { max: 1, hidden: true, "aria-label": "Steps that are done" });
  const label = element("label", { class: "run" }, box, name, state, facts, bar);
  const row = { item: element("li", {}, label), label, box, name, state, facts, bar };
  rows.set(run.key, row);
  return row;
}

function factsOf(run) {
  if (run.problem) return run.problem;
  const { step, steps, best } = run, count = (value) => value.toLocaleString("en");
  return [
    step != null && (steps > step ? `${count(step)} of ${count(steps)} steps` : `${count(step)} steps`),
    run.loss != null && `loss ${written("loss", run.loss)}`,
    best && run.read === 1 && `best ${best.name.replace("eval.", "held-out ").replaceAll("_", " ")} ${written(best.name, best.value)}`,
    run.tokens != null && `${compact(run.tokens)} tokens`,
    run.seconds > 0 && duration(run.seconds),
    run.read < 1 && `reading, ${Math.floor(100 * run.read)} %`,
    run.damaged > 0 && `${run.damaged} damaged ${run.damaged === 1 ? "line is" : "lines are"} left out`,
    !["running", "finished"].includes(run.state) && run.reason,
  ].filter(Boolean).join(" · ") || "nothing measured yet";
}

// Running ones first; the order does not change while they run.
function sorted(runs) {
  const order = (run) => run.state === "running" ? 0 : 1;
  return [...runs].sort((a, b) => order(a) - order(b) ||
    a.name.localeCompare(b.name, "en", { numeric: true }));
}

function listRuns(runs, chosen, filter, choose) {
  const shown = sorted(runs).filter((run) => run.name.toLowerCase().includes(filter.toLowerCase()));
  for (const run of shown) {
    const row = rowOf(run, choose), colour = chosen.get(run.key);
    row.box.checked = colour !== undefined;
    row.label.className = colour === undefined ? "run" : `run colour-${colour}`;
    put(row.name, run.name);
    row.label.title = run.folder;
    put(row.state, STATES[run.state] ?? run.state);
    row.state.dataset.state = run.state;
    put(row.facts, factsOf(run));
    row.facts.classList.toggle("wrong", Boolean(run.problem));
    row.bar.hidden = run.state !== "running" || !run.steps;
    row.bar.value = run.steps ? (run.step ?? 0) / run.steps : 0;
  }
  const items = shown.map((run) => rows.get(run.key).item);
  if (items.length !== $("list").children.length || items.some((item, at) => item !== $("list").children[at])) {
    const focused = document.activeElement;
    $("list").replaceChildren(...items);
    if ($("list").contains(focused)) focused.focus();
  }
  put($("count"), runs.length ? `${chosen.size} of ${runs.length}` : "");
  $("filter").hidden = runs.length < 8;
}

// -- settings that differ, and samples of text --------------------------------------------------

const nameOf = (run) => element("span", { class: `of colour-${run.colour}` },
  element("span", { class: "swatch" }), element("span", { dir: "auto" }, run.name));

function showDetails({ settings, samples }, chosen) {
  $("settings").hidden = !settings.length;
  $("settings").lastElementChild.replaceChildren(element("table", {},
    element("thead", {}, element("tr", {}, element("td", {}), ...chosen.map((run) => element("th", { scope: "col" }, nameOf(run))))),
    element("tbody", {}, ...settings.map(({ name, values }) => element("tr", {},
      element("th", { scope: "row" }, name),
      ...chosen.map((run) => element("td", { dir: "auto" }, values[run.key] ?? "")))))));
  const texts = chosen.flatMap((run) => (samples[run.key] ?? []).map((sample) => ({ run, ...sample })));
  $("samples").hidden = !texts.length;
  $("samples").lastElementChild.replaceChildren(...texts.map(({ run, step, temperature, prompt, text }) =>
    element("div", { class: "sample" },
      element("div", { class: "note" }, nameOf(run), `step ${Number(step).toLocaleString("en")}, temperature ${temperature}`),
      element("p", { dir: "auto" }, element("span", { class: "prompt" }, prompt), text))));
}

// -- elements: all text becomes text nodes, never HTML -----------------------------------------

function element(tag, attributes = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...inside.filter((one) => one != null));
  return made;
}

function icon(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

const iconButton = (name, label, onclick, more = {}) => element(
  "button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...more },
  icon(name));

const $ = (id) => document.getElementById(id);

// -- what this browser remembers ----------------------------------------------------------------

function kept(name) {
  try {
    return JSON.parse(localStorage.getItem(`culm.${name}`));
  } catch { return null; }
}

function keep(name, value) {
  try {
    localStorage.setItem(`culm.${name}`, JSON.stringify(value));
  } catch { /* a private window: settings live as long as it */ }
}

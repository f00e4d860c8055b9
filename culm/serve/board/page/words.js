// -- what numbers are called, and how they are written ------------------------------------------

const GROUPS = [
  ["Learning", ["loss", "bits_per_byte", "reward", "perplexity"]],
  ["Optimiser", ["rate", "grad_norm", "update_ratio"]],
  ["Speed and memory", ["tokens_per_second", "seconds", "mfu", "waiting", "peak_bytes"]],
  ["Experts", ["load", "max_violation", "dropped"]],
];
const TITLES = {
  loss: "Loss", bits_per_byte: "Bits per byte", reward: "Reward", nll: "Negative log-likelihood",
  rate: "Learning rate", grad_norm: "Gradient norm", update_ratio: "Update ratio",
  tokens_per_second: "Tokens per second", seconds: "Seconds per step", waiting: "Waiting for data",
  mfu: "Model FLOPs utilisation", peak_bytes: "Peak memory", load: "Expert load",
  max_violation: "Maximum violation of expert load", dropped: "Dropped by full experts",
  perplexity: "Perplexity",
};
const SHARES = new Set(["waiting", "mfu", "dropped"]);
const STATES = {
  running: "running", finished: "finished", interrupted: "stopped", failed: "failed",
  killed: "crashed", gone: "gone", unknown: "",
};

const titleOf = (name) => TITLES[name] ?? name;

const compact = (value, digits = 3) => {
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(digits - 1).replace("e+", "e");
  for (const [unit, mark] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(digits))}${mark}`;
  }
  return String(Number(value.toPrecision(digits)));
};

function duration(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  if (hours < 1) return seconds % 60 >= 1 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${minutes} min`;
  const days = Math.floor(hours / 24);
  if (days < 1) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

function bytes(value, digits = 3) {
  for (const [unit, mark] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= unit) return `${Number((value / unit).toPrecision(digits))} ${mark}`;
  }
  return `${value} B`;
}

// A value of a metric; axes have fewer digits than readings.
function written(name, value, digits = 4) {
  if (value == null) return "–";
  if (name.endsWith("bytes")) return bytes(value, digits);
  if (SHARES.has(name)) return `${Number((100 * value).toPrecision(digits))} %`;
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) {
    const [lead, power] = value.toExponential(digits - 1).split("e-");
    return `${Number(lead)}e−${power}`;
  }
  return size >= 1e4 ? compact(value, digits) : String(Number(value.toPrecision(digits)));
}

const writtenX = (axis, value) => axis === "seconds" ? duration(value) : compact(value, 4);

// A text that is the same is not written again, so that nothing flickers and readers stay silent.
function put(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

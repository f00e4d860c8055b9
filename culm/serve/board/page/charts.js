// -- one chart: the curves of a metric, of all chosen runs --------------------------------------

const HEIGHT = 200;
const nameIn = ({ run, held }) => held ? `${run.name}, held out` : run.name;
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A colour of the theme, as canvases take it.
function resolved(name, alpha = 1) {
  const probe = $("said");
  probe.style.color = `color-mix(in srgb, var(${name}) ${alpha * 100}%, transparent)`;
  const found = getComputedStyle(probe).color;
  probe.style.color = "";
  return found;
}

// curves: [{ run, held, x, mean, low, high }]; low and high are missing where they are the mean.
// Every curve has three series, so that live data never changes their number.
function joined(curves) {
  const tables = curves.map(({ x, mean, low, high }) => [x, mean, low ?? mean, high ?? mean]);
  return tables.length === 1 ? tables[0] : uPlot.join(tables);
}

function seriesOf(curves) {
  return curves.flatMap(({ run, held, mean }) => {
    const colour = resolved(`--curve-${run.colour}`);
    const edge = { width: 0, stroke: "#0000", points: { show: false }, spanGaps: true };
    const line = {
      stroke: colour, width: 1.6, spanGaps: true, dash: held ? [5, 4] : undefined,
      points: { show: mean.length < (held ? 60 : 3), size: 5, fill: colour, stroke: colour },
    };
    return [line, edge, edge];
  });
}

// Several of them are fainter, since they lie over each other.
const bandsOf = (curves) => curves.map(({ run }, at) => ({
  series: [3 * at + 3, 3 * at + 2],
  fill: resolved(`--curve-${run.colour}`, curves.length > 1 ? 0.12 : 0.22),
}));

// Places for labels of a logarithmic axis: 1, 2 and 5 of each decade, or only 1 of many decades.
function logSplits(start, end) {
  const first = Math.floor(Math.log10(start)), decades = Math.log10(end / start);
  const leads = decades > 3 ? [1] : [1, 2, 5], skip = Math.ceil(decades / 6);
  const found = [];
  for (let power = first; 10 ** power <= end; power++) {
    if (decades <= 3 || (power - first) % skip === 0) found.push(...leads.map((lead) => lead * 10 ** power));
  }
  const inside = found.filter((one) => one >= start && one <= end);
  if (inside.length > 2) return inside;
  const step = [1, 2, 5, 10].map((lead) => lead * 10 ** Math.floor(Math.log10((end - start) / 4)))
    .find((one) => one >= (end - start) / 5);
  return Array.from({ length: 6 }, (_, at) => (Math.ceil(start / step) + at) * step).filter((one) => one <= end);
}
const POWERS_OF_TWO = Array.from({ length: 60 }, (_, at) => 2 ** at);

class Chart {
  constructor(name, board) {
    this.name = name;
    this.board = board;       // { axis, range, logX, logY, zoom(start, end), whole() }
    this.plot = null;
    this.curves = [];
    this.values = [];
    this.place = element("div", { class: "plot", tabindex: 0, role: "img" });
    this.at = element("span", { class: "note" });
    this.legend = element("div", { class: "legend" });
    this.root = element("figure", { class: "chart" },
      element("figcaption", {}, element("h3", {}, titleOf(name)), this.at, this.legend), this.place);
    this.place.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  // Redraws in place; a plot is made again only if its curves are others.
  show(curves) {
    const outline = JSON.stringify([
      curves.map(({ run, held, mean }) => [run.key, run.name, run.colour, held, mean.length < 3, mean.length < 60]),
      this.board.logX, this.board.logY, this.board.theme]);
    this.curves = curves;
    const data = joined(curves).map((column, at) =>
      at && this.board.logY ? column.map((value) => value > 0 ? value : null) : column);
    if (outline !== this.outline) {
      this.plot?.destroy();
      this.plot = new uPlot(this.options(), data, this.place);
      this.outline = outline;
      this.nameCurves();
    } else this.plot.setData(data);
    this.read();
  }

  options() {
    const { logX, logY } = this.board, soft = resolved("--soft"), line = resolved("--line");
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const splits = (log) => log ? { splits: (_, __, start, end) => logSplits(start, end), filter: (_, all) => all } : {};
    const margin = (_, low, high) => low > 0 && low < high ? [low / (high / low) ** 0.05, high * (high / low) ** 0.05] : [low / 2 || 0.1, high * 2 || 1];
    const few = (values, write) => values.map((value) => value == null ? null : write(value));
    return {
      width: this.width(), height: HEIGHT, legend: { show: false }, padding: [10, 10, 0, 0],
      series: [{}, ...seriesOf(this.curves)], bands: bandsOf(this.curves),
      scales: {
        x: { time: false, distr: logX ? 3 : 1, range: () => this.board.range },
        y: logY ? { distr: 3, range: margin } : {},
      },
      axes: [
        { ...axis, ...splits(logX), grid: { show: false }, size: 24, gap: 3, space: 60, values: (_, all) => few(all, (value) => writtenX(this.board.axis, value)) },
        { ...axis, ...splits(logY), ...(this.name.endsWith("bytes") ? { incrs: POWERS_OF_TWO } : {}), size: 56, gap: 5, space: 34, values: (_, all) => few(all, (value) => written(this.name, value, 3)) },
      ],
      cursor: {
        sync: { key: "board" }, y: false, points: { show: false },
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => this.board.whole() },
      },
      hooks: {
        setCursor: [() => this.read()],
        setSelect: [(plot) => {
          const { left, width } = plot.select;
          if (width < 4) return;
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          this.board.zoom(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
        }],
      },
    };
  }

  nameCurves() {
    this.values = this.curves.map(({ run, held }) => {
      const value = element("span", {});
      const swatch = element("span", { class: held ? "swatch dashed" : "swatch" });
      const title = nameIn({ run, held });
      const shown = element("span", { class: `value colour-${run.colour}`, title }, swatch, value);
      return { value, shown };
    });
    this.legend.replaceChildren(...this.values.map(({ shown }) => shown));
  }

  // The values at the cursor, or the last ones.
  read() {
    if (!this.plot || this.values.length !== this.curves.length) return;
    const { idx } = this.plot.cursor, data = this.plot.data, inside = idx != null && this.plot.cursor.left >= 0;
    const x = inside ? data[0][idx] : null;
    const texts = this.curves.map((curve, at) => {
      const reaches = !inside || (curve.x[0] <= x && x <= curve.x.at(-1));
      const [mean, low, high] = [1, 2, 3].map((of) =>
        reaches ? nearest(data[3 * at + of], inside ? idx : data[0].length - 1) : null);
      put(this.values[at].value, written(this.name, mean));
      const wide = low !== high ? `, from ${written(this.name, low)} to ${written(this.name, high)}` : "";
      return `${nameIn(curve)}: ${written(this.name, mean)}${wide}`;
    });
    put(this.at, inside ? `at ${writtenX(this.board.axis, x)}` : "");
    this.label = `${titleOf(this.name)} ${this.at.textContent}: ${texts.join("; ")}`;
    this.place.setAttribute("aria-label", this.label);
  }

  onKey(event) {
    const { plot } = this, [xs] = plot.data, moves = { ArrowLeft: -1, ArrowRight: 1 };
    const now = plot.cursor.idx ?? xs.length - 1, [start, end] = this.board.range;
    if (event.key in moves) {
      const step = moves[event.key] * Math.max(1, Math.round(xs.length / (event.shiftKey ? 10 : 100)));
      const next = Math.min(Math.max(now + step, 0), xs.length - 1);
      plot.setCursor({ left: plot.valToPos(xs[next], "x"), top: 1 });
      this.read();
      $("said").textContent = this.label;
    } else if (event.key === "+" || event.key === "-") {
      const half = (end - start) * (event.key === "+" ? 0.25 : 1), middle = xs[now];
      this.board.zoom(middle - half, middle + half);
    } else if (event.key === "Escape") this.board.whole();
    else return;
    event.preventDefault();
  }

  width() { return Math.max(this.place.clientWidth, 120); }

  resize() {
    if (this.plot && this.plot.width !== this.width()) this.plot.setSize({ width: this.width(), height: HEIGHT });
  }

  remove() {
    this.plot?.destroy();
    this.root.remove();
  }
}

// Of runs with other steps a column has gaps; the value nearest to a place in it.
function nearest(column, at) {
  for (let away = 0; away < column.length; away++) {
    if (column[at - away] != null) return column[at - away];
    if (column[at + away] != null) return column[at + away];
  }
  return null;
}

// @ts-check
/**
 * A layer x position map: Python owns the numbers, this file draws them and reports picks. Instruments
 * around a map put their own file after this one and call `heatMap`.
 * @typedef {{row: number, column: number, n: number}} Pick
 * @typedef {{rows?: [number, number], columns?: [number, number]}} Region
 * @typedef {{values: DataView, maps: string[], shown: number, row_labels: string[],
 *   column_labels: string[], row_title: string, column_title: string, value_title: string,
 *   title: string, subtitle: string, domain: [number, number], stops: string[], lower: boolean,
 *   picked: Partial<Pick>, handled: number, listening: boolean, answer: string, error: string,
 *   texts?: string[], region?: Region, busy?: boolean}} Model
 */

const MISSING = "#e0e0e0", HATCH = "#a3a3a3", TILT = (50 * Math.PI) / 180;
const DATA = ["values", "maps", "shown", "row_labels", "column_labels", "row_title", "column_title",
  "value_title", "title", "subtitle", "domain", "stops", "lower", "texts"];
const KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "PageDown", "Enter", " "];

/** Round numbers inside the domain, as the charts print them. @param {number} low @param {number} high */
function ticks(low, high) {
  const raw = (high - low) / 4, base = 10 ** Math.floor(Math.log10(raw));
  const step = base * ([1, 2, 5, 10].find((k) => raw <= 1.15 * k * base) ?? 10), out = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) out.push(Number((k * step).toPrecision(6)));
  return out;
}

/** Every how many cells a label fits. @param {number} step @param {number} room */
const every = (step, room) => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((k) => step * k >= room) ?? 1000;

/** Size a canvas for sharp pixels and return its context. @param {HTMLCanvasElement} c @param {number} w @param {number} h */
function fit(c, w, h) {
  const ratio = window.devicePixelRatio || 1;
  c.width = Math.round(w * ratio);
  c.height = Math.round(h * ratio);
  c.style.width = `${w}px`;
  c.style.height = `${h}px`;
  const g = /** @type {CanvasRenderingContext2D} */ (c.getContext("2d"));
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  return g;
}

/** @param {{model: any, el: HTMLElement}} context */
function heatMap({ model, el }) {
  /** @template {keyof Model} K @param {K} k @returns {Model[K]} */
  const get = (k) => model.get(k);
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-heatmap", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const choices = add("fieldset", "lw-maps", root);
  const body = add("div", "lw-body", root);
  const side = /** @type {HTMLCanvasElement} */ (add("canvas", "lw-rows", body, { "aria-hidden": "true" }));
  const scroll = add("div", "lw-scroll", body), plot = add("div", "lw-plot", scroll);
  const under = /** @type {HTMLCanvasElement} */ (add("canvas", "lw-cells", plot, { "aria-hidden": "true" }));
  const over = /** @type {HTMLCanvasElement} */ (add("canvas", "lw-over", plot, { tabindex: "0", role: "application", "aria-roledescription": "heat map" }));
  const bar = /** @type {HTMLCanvasElement} */ (add("canvas", "lw-bar", body, { "aria-hidden": "true" }));
  const readout = add("div", "lw-readout", root, { role: "status", "aria-live": "polite" });
  const answer = add("div", "lw-answer", root, { "aria-live": "polite" });
  // Live instruments have a line of their own for errors.
  const error = add("div", "lw-error", get("busy") === undefined ? root : null, { role: "alert" });

  let cw = 20, ch = 14, rows = 0, columns = 0, grid = new Float32Array(0);
  let cell = { row: 0, column: 0 };
  /** @type {{row: number, column: number} | null} */
  let hover = null;
  /** @type {{row: number, column: number, end: {row: number, column: number}} | null} */
  let drag = null;
  /** @type {{row: number, column: number} | null} */
  let anchor = null; // where Shift and arrows began

  /** @param {number} row @param {number} column @param {number} [map] */
  const value = (row, column, map = get("shown")) => grid[(map * rows + row) * columns + column];
  /** @param {number} row */
  const top = (row) => (get("lower") ? rows - 1 - row : row) * ch;

  function read() {
    const view = get("values");
    rows = get("row_labels").length;
    columns = get("column_labels").length;
    // The buffer may start at any byte: copy, so that the floats are aligned.
    grid = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    cell = { row: Math.max(0, Math.min(cell.row, rows - 1)), column: Math.max(0, Math.min(cell.column, columns - 1)) };
    hover = null;
  }

  /** The words written in the cells, if there are any. */
  const words = () => (get("texts")?.length === rows * columns ? /** @type {string[]} */ (get("texts")) : null);

  function choose() {
    const maps = get("maps");
    choices.hidden = maps.length < 2;
    if (choices.dataset.maps !== JSON.stringify(maps)) {
      choices.dataset.maps = JSON.stringify(maps);
      choices.replaceChildren();
      add("legend", "lw-unseen", choices).textContent = "Map shown";
      const group = `lw-${Math.random().toString(36).slice(2)}`;
      maps.forEach((name, k) => {
        const label = add("label", "lw-choice", choices);
        const input = add("input", "", label, { type: "radio", name: group, value: String(k) });
        add("span", "", label).textContent = name;
        input.addEventListener("change", () => { model.set("shown", k); model.save_changes(); }, { signal });
        input.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
      });
    }
    choices.querySelectorAll("input").forEach((e, k) => { e.checked = k === get("shown"); });
  }

  function draw() {
    const ink = getComputedStyle(root).color;
    const font = `11px ${getComputedStyle(root).fontFamily}`;
    title.textContent = get("title");
    subtitle.textContent = get("subtitle");
    choose();
    const rowLabels = get("row_labels"), columnLabels = get("column_labels");
    let g = fit(side, 1, 1);
    g.font = font;
    /** @param {string[]} labels */
    const widest = (labels) => labels.reduce((m, s) => Math.max(m, g.measureText(s).width), 0);
    const left = Math.ceil(widest(rowLabels)) + 28;
    const wide = widest(columnLabels), long = wide > 20;
    const barWide = Math.max(64, Math.min(150, g.measureText(get("value_title")).width + 4));
    // Shrink to the notebook's width; below 7 pixels a cell is hard to hit, so the map scrolls.
    const room = (el.clientWidth || 700) - left - barWide - 20;
    cw = Math.max(7, Math.min(34, Math.floor(room / columns)));
    ch = Math.max(8, Math.min(26, Math.floor(400 / rows)));
    if (words()) [cw, ch] = [Math.max(56, Math.min(84, Math.floor(room / columns))), 18]; // a word is read in each
    const below = (long ? Math.ceil(wide * Math.sin(TILT)) + 14 : 18) + 20;
    const w = columns * cw, h = rows * ch;

    g = fit(side, left, h + below);
    g.font = font; g.fillStyle = ink; g.textAlign = "right"; g.textBaseline = "middle";
    for (let i = 0; i < rows; i += every(ch, 15)) g.fillText(rowLabels[i], left - 5, top(i) + ch / 2);
    g.save(); g.translate(10, h / 2); g.rotate(-Math.PI / 2); g.textAlign = "center";
    g.fillText(get("row_title"), 0, 0); g.restore();

    g = fit(under, w + 8, h + below);
    const [low, high] = get("domain"), colours = ramp(get("stops"));
    const texts = words();
    for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
      const v = value(i, j), x = j * cw, y = top(i);
      const rgb = colourOf(colours, v, low, high);
      g.fillStyle = rgb ? `rgb(${rgb})` : MISSING;
      g.fillRect(x, y, cw, ch);
      if (!Number.isFinite(v)) { g.strokeStyle = HATCH; g.beginPath(); g.moveTo(x + 2, y + ch - 2); g.lineTo(x + cw - 2, y + 2); g.stroke(); }
      if (rgb && texts) {
        g.fillStyle = inkOn(rgb); g.font = font; g.textAlign = "center"; g.textBaseline = "middle";
        g.fillText(texts[i * columns + j], x + cw / 2, y + ch / 2 + 1, cw - 4);
      }
    }
    g.strokeStyle = "rgba(255,255,255,0.7)"; g.lineWidth = 0.5; g.beginPath();
    if (cw > 9) for (let j = 1; j < columns; j++) { g.moveTo(j * cw, 0); g.lineTo(j * cw, h); }
    if (ch > 7) for (let i = 1; i < rows; i++) { g.moveTo(0, i * ch); g.lineTo(w, i * ch); }
    g.stroke();
    g.font = font; g.fillStyle = ink; g.textBaseline = "middle"; g.textAlign = "center";
    g.fillText(get("column_title"), Math.min(w, scroll.clientWidth || w) / 2, h + below - 8);
    /** @param {CanvasRenderingContext2D} c @param {number} shift */
    const foot = (c, shift) => {
      for (let j = 0; j < columns; j += every(cw, long ? 15 : wide + 6)) {
        c.save(); c.translate(shift + (j + 0.5) * cw + (long ? 3 : 0), h + 10);
        if (long) { c.rotate(-TILT); c.textAlign = "right"; } else c.textAlign = "center";
        c.fillText(columnLabels[j], 0, 0); c.restore();
      }
    };
    foot(g, 0);
    // A slanted label of the first columns reaches under the row labels, where nothing scrolls.
    if (columns * cw <= room) foot(/** @type {CanvasRenderingContext2D} */ (side.getContext("2d")), left);

    const tall = Math.min(180, Math.max(60, h - 24));
    g = fit(bar, barWide, tall + 30);
    g.font = font; g.fillStyle = ink; g.textBaseline = "middle";
    g.fillText(get("value_title"), 0, 8, barWide);
    for (let k = 0; k < tall; k++) { g.fillStyle = `rgb(${colours[255 - Math.round((255 * k) / (tall - 1))]})`; g.fillRect(0, 20 + k, 14, 1.5); }
    g.fillStyle = ink;
    for (const v of ticks(low, high)) g.fillText(say(v), 19, 20 + (tall * (high - v)) / (high - low));
    over.setAttribute("aria-label", `${get("title")}: ${get("row_title")} by ${get("column_title")}. Arrow keys move, Enter picks.`);
    mark();
  }

  function mark() {
    const g = fit(over, columns * cw, rows * ch);
    /** @param {{row: number, column: number}} c @param {string} a @param {string} b @param {number} k */
    const box = (c, a, b, k) => {
      const x = c.column * cw, y = top(c.row);
      g.strokeStyle = a; g.lineWidth = k + 2; g.strokeRect(x + k / 2, y + k / 2, cw - k, ch - k);
      g.strokeStyle = b; g.lineWidth = k; g.strokeRect(x + k / 2, y + k / 2, cw - k, ch - k);
    };
    const at = hover ?? (document.activeElement === over ? cell : null);
    const p = get("picked");
    if (p.row !== undefined && p.column !== undefined && p.row < rows && p.column < columns) box(/** @type {Pick} */ (p), "#000", "#fff", 2);
    if (at) box(at, "#fff", "#000", 1);
    const r = drag ? spanned(drag, drag.end) : get("region");
    if (r?.rows && r.columns) {
      const y = Math.min(top(r.rows[0]), top(r.rows[1])), high = (r.rows[1] - r.rows[0] + 1) * ch;
      for (const [colour, dash] of /** @type {[string, number[]][]} */ ([["#fff", []], ["#000", [5, 4]]])) {
        g.setLineDash(dash); g.strokeStyle = colour; g.lineWidth = 2;
        g.strokeRect(r.columns[0] * cw + 1, y + 1, (r.columns[1] - r.columns[0] + 1) * cw - 2, high - 2);
      }
      g.setLineDash([]);
    }
    over.dataset.cell = at ? `${at.row},${at.column}` : "";
    tell(at ?? (p.row !== undefined ? /** @type {Pick} */ (p) : null));
  }

  /** @param {{row: number, column: number} | null} c */
  function tell(c) {
    if (!c || c.row >= rows || c.column >= columns) { readout.textContent = get("listening") ? "Hover a cell to read it, click or press Enter to run it." : "Hover a cell to read it."; return; }
    const place = `${get("row_title")} ${get("row_labels")[c.row]}, ${get("column_title").replace(/: token$/, "")} ${get("column_labels")[c.column]}`;
    const all = get("maps").map((name, k) => (name ? `${name} ` : "") + say(value(c.row, c.column, k)));
    const shown = get("shown"), here = all.splice(shown, 1)[0];
    const word = words()?.[c.row * columns + c.column];
    readout.replaceChildren(`${place} — `);
    if (word !== undefined) { add("bdi", "", readout, {}, `“${word}”`); readout.append(" "); }
    add("b", "", readout).textContent = here;
    if (all.length) readout.append(` (${all.join(", ")})`);
  }

  function reply() {
    const busy = get("listening") && (get("picked").n ?? 0) !== get("handled");
    answer.classList.toggle("lw-busy", busy);
    answer.setAttribute("aria-busy", String(busy));
    answer.textContent = busy ? "working…" : get("answer");
    error.textContent = busy ? "" : get("error");
  }

  /** @param {{row: number, column: number}} c */
  function pick(c) {
    cell = { row: c.row, column: c.column };
    send(model, { picked: { ...cell, n: (get("picked").n ?? 0) + 1 } });
  }

  /** @param {{row: number, column: number}} a @param {{row: number, column: number}} b @returns {Region} */
  const spanned = (a, b) => ({
    rows: [Math.min(a.row, b.row), Math.max(a.row, b.row)], columns: [Math.min(a.column, b.column), Math.max(a.column, b.column)],
  });

  /** @param {MouseEvent} e */
  function locate(e) {
    const r = over.getBoundingClientRect();
    const column = Math.floor(((e.clientX - r.left) / r.width) * columns), line = Math.floor(((e.clientY - r.top) / r.height) * rows);
    if (column < 0 || column >= columns || line < 0 || line >= rows) return null;
    return { row: get("lower") ? rows - 1 - line : line, column };
  }

  over.addEventListener("mousemove", (e) => { const c = locate(e); if (c?.row !== hover?.row || c?.column !== hover?.column) { hover = c; if (drag && c) drag.end = c; mark(); } }, { signal });
  over.addEventListener("mousedown", (e) => { const c = locate(e); if (c && get("region") !== undefined) drag = { ...c, end: c }; }, { signal });
  window.addEventListener("mouseup", () => {
    if (drag && (drag.row !== drag.end.row || drag.column !== drag.end.column)) {
      send(model, { region: spanned(drag, drag.end) });
      dragged = true;
    }
    drag = null;
  }, { signal });
  over.addEventListener("mouseleave", () => { hover = null; mark(); }, { signal });
  let dragged = false; // the click that ends a drag picks nothing
  over.addEventListener("click", (e) => { const c = locate(e); if (c && !dragged) { pick(c); mark(); } dragged = false; }, { signal });
  over.addEventListener("focus", mark, { signal });
  over.addEventListener("blur", mark, { signal });
  over.addEventListener("keydown", (e) => {
    if (e.key === "Escape" && get("region")?.rows) { keep(e); send(model, { region: {} }); mark(); return; }
    if (!KEYS.includes(e.key) || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    e.stopPropagation(); // or the notebook would move to another cell
    hover = null;
    const up = get("lower") ? 1 : -1;
    if (e.key === "Enter" || e.key === " ") { pick(cell); mark(); return; }
    anchor = e.shiftKey ? anchor ?? cell : null;
    const by = /** @type {Record<string, [number, number]>} */ ({ ArrowUp: [up, 0], ArrowDown: [-up, 0], PageUp: [5 * up, 0], PageDown: [-5 * up, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -columns], End: [0, columns] })[e.key];
    cell = { row: Math.max(0, Math.min(rows - 1, cell.row + by[0])), column: Math.max(0, Math.min(columns - 1, cell.column + by[1])) };
    if (anchor && get("region") !== undefined) send(model, { region: spanned(anchor, cell) });
    scroll.scrollLeft = Math.max(Math.min(scroll.scrollLeft, cell.column * cw), (cell.column + 1) * cw - scroll.clientWidth);
    mark();
  }, { signal });

  let due = 0;
  const redraw = () => { if (!due) due = requestAnimationFrame(() => { due = 0; draw(); root.dataset.rev = String(Number(root.dataset.rev ?? 0) + 1); }); };
  const changed = () => { read(); redraw(); };
  const pointed = () => { mark(); reply(); };
  const wires = [...DATA.map((k) => /** @type {const} */ ([k, changed])), ["picked", pointed],
    ["handled", reply], ["answer", reply], ["error", reply], ["listening", pointed], ["region", mark]];
  for (const [key, react] of wires) model.on(`change:${key}`, react);
  const sizes = new ResizeObserver(redraw);
  sizes.observe(el);
  const themes = new MutationObserver(redraw); // JupyterLab marks its theme on the body
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  read(); draw(); reply();

  return () => {
    stop.abort();
    sizes.disconnect();
    themes.disconnect();
    cancelAnimationFrame(due);
    for (const [key, react] of wires) model.off(`change:${key}`, react);
    root.remove();
  };
}

/** Show a table {caption, columns, rows} of texts, or nothing. @param {HTMLElement} box @param {any} t */
function fillTable(box, t) {
  box.replaceChildren();
  if (!t || !t.rows) return;
  const table = add("table", "lw-table", box);
  add("caption", "", table, {}, t.caption ?? "");
  const head = add("tr", "", add("thead", "", table)), body = add("tbody", "", table);
  for (const c of t.columns) add(c ? "th" : "td", "", head, c ? { scope: "col" } : {}, c);
  for (const row of t.rows) {
    const line = add("tr", "", body);
    for (const c of row) add("bdi", "", add("td", "", line), {}, c);
  }
}

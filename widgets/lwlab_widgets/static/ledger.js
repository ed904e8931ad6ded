// A table with filters: Python says which rows pass; a row opens with a click, Enter or Space.

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-ledger", el);
  const title = add("div", "lw-title", root);
  const tools = add("div", "lw-tools", root, { role: "search" });
  const words = add("label", "", tools, {}, "search ");
  /** @type {Record<string, HTMLInputElement | HTMLSelectElement>} */
  const asks = { text: /** @type {HTMLInputElement} */ (add("input", "", words, { type: "search" })) };
  for (const name of ["family", "model", "verdict", "cost"]) {
    const label = add("label", "", tools, {}, `${name} `);
    const select = /** @type {HTMLSelectElement} */ (add("select", "", label));
    add("option", "", select, { value: "" }, "all");
    for (const o of model.get("options")[name]) add("option", "", select, { value: o }, name === "cost" ? `up to ${o} s` : o);
    asks[name] = select;
  }
  const count = add("div", "lw-count", root, { role: "status", "aria-live": "polite" });
  const scroll = add("div", "lw-scroll", root, { tabindex: "0", role: "region", "aria-label": "table" });
  const table = add("table", "", scroll), head = add("tr", "", add("thead", "", table));
  for (const name of model.get("columns")) add("th", "", head, { scope: "col" }, name);
  const body = add("tbody", "", table);
  const detail = add("div", "lw-detail", root, { "aria-live": "polite" });
  const error = add("div", "lw-error", root, { role: "alert" });
  let at = 0;
  const lines = model.get("rows").map((/** @type {any} */ r, /** @type {number} */ i) => {
    const line = add("tr", "", body);
    r.cells.forEach((/** @type {string} */ text, /** @type {number} */ k) => {
      const cell = add(k ? "td" : "th", "", line, k ? {} : { scope: "row" });
      if (k) { cell.textContent = text; return; }
      const open = add("button", "lw-open", cell, { type: "button", "aria-expanded": "false" }, `${r.mark} ${text}`.trim());
      if (r.colour) open.style.borderLeft = `4px solid ${r.colour}`;
      open.addEventListener("click", () => send(model, { picked: model.get("picked") === i ? -1 : i }), { signal });
      open.addEventListener("focus", () => { at = i; rove(); }, { signal });
    });
    return line;
  });
  /** @param {number} i @returns {HTMLElement} */
  const opener = (i) => lines[i].querySelector(".lw-open");
  function rove() { lines.forEach((/** @type {HTMLElement} */ _l, /** @type {number} */ i) => { opener(i).tabIndex = i === at ? 0 : -1; }); }

  const ask = debounce(() => send(model, { filters: Object.fromEntries(Object.entries(asks).map(([k, e]) => [k, e.value])) }), 120);
  for (const e of Object.values(asks)) {
    e.addEventListener("input", ask, { signal });
    e.addEventListener("keydown", (k) => k.stopPropagation(), { signal });
  }
  scroll.addEventListener("keydown", (e) => {
    e.stopPropagation();
    const shown = model.get("shown"), k = shown.indexOf(at);
    const to = { ArrowDown: k + 1, ArrowUp: k - 1, Home: 0, End: shown.length - 1 }[e.key];
    if (to === undefined || !shown.length || e.ctrlKey || e.altKey || e.metaKey) return;
    keep(e);
    at = shown[Math.max(0, Math.min(shown.length - 1, to))];
    rove();
    opener(at).focus();
  }, { signal });

  function filter() {
    const shown = new Set(model.get("shown"));
    lines.forEach((/** @type {HTMLElement} */ l, /** @type {number} */ i) => { l.hidden = !shown.has(i); });
    count.textContent = `${shown.size} of ${lines.length} ${model.get("noun")}`;
    if (!shown.has(at) && shown.size) at = model.get("shown")[0];
    rove();
    for (const [k, e] of Object.entries(asks)) if (e !== document.activeElement) e.value = model.get("filters")[k] ?? "";
  }
  function pick() {
    const p = model.get("picked");
    lines.forEach((/** @type {HTMLElement} */ l, /** @type {number} */ i) => { l.classList.toggle("lw-picked", i === p); opener(i).setAttribute("aria-expanded", String(i === p)); });
    detail.textContent = model.get("detail");
  }
  const heads = () => { title.textContent = model.get("title"); error.textContent = model.get("error"); };
  const unwire = wire(model, el, { "shown filters": filter, "picked detail": pick, "title error": heads });
  heads(); filter(); pick();
  return () => { stop.abort(); unwire(); root.remove(); };
}

export default { render };

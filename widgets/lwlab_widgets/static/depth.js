// The depth board: rows of layers that are switched, repeated and moved; Python runs the chain.

/** @typedef {{layer: number, attn: boolean, mlp: boolean, times: number}} Row */

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-depth", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const asks = add("label", "lw-ask", root, {}, "Prompt ");
  const prompt = /** @type {HTMLInputElement} */ (add("input", "lw-prompt", asks, { type: "text", spellcheck: "false", dir: "auto" }));
  const body = add("div", "lw-body", root);
  const left = add("div", "lw-left", body), right = add("div", "lw-right", body, { "aria-live": "polite" });
  const tools = add("div", "lw-tools", left);
  const reset = add("button", "lw-reset", tools, { type: "button" }, "Whole model");
  add("div", "lw-help", left, { id: "" }, "Arrows move between controls, Space switches, Alt+arrows or dragging ⠿ moves a layer.");
  const list = add("div", "lw-list", left, { role: "list", "aria-label": "Layers in the order they run. Arrow keys move, Space switches, Alt and an arrow moves the layer." });
  const told = add("div", "lw-unseen", root, { role: "status", "aria-live": "polite" });
  const facts = add("div", "lw-facts", right);
  const tables = add("div", "lw-tables", right);
  const busy = activity(model, root, signal);
  let at = { row: 0, part: 1 };

  /** @returns {Row[]} */
  const rows = () => model.get("steps");
  /** @param {Row[]} steps @param {string} [say] */
  const change = (steps, say = "") => { told.textContent = say; send(model, { steps }); };
  /** @param {number} i @param {Partial<Row>} part */
  const edit = (i, part) => change(rows().map((r, k) => (k === i ? { ...r, ...part } : r)));

  /** @param {number} from @param {number} to place among the others */
  function move(from, to) {
    const next = [...rows()];
    if (to < 0 || to >= next.length || from === to) return;
    next.splice(to, 0, ...next.splice(from, 1));
    at = { ...at, row: to };
    change(next, `layer ${next[to].layer} now runs in place ${to + 1} of ${next.length}`);
  }

  /** @param {HTMLElement} row */
  const partsOf = (row) => /** @type {HTMLElement[]} */ ([...row.querySelectorAll("button, input")]);
  function rove() {
    [...list.children].forEach((row, i) => partsOf(/** @type {HTMLElement} */ (row)).forEach((e, k) => { e.tabIndex = i === at.row && k === at.part ? 0 : -1; }));
  }
  function focusAt() {
    rove();
    const row = /** @type {HTMLElement | undefined} */ (list.children[at.row]);
    if (row) { const e = partsOf(row)[at.part]; e.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  }

  function drawRows() {
    const had = list.contains(document.activeElement), steps = rows(), splits = model.get("splits");
    list.replaceChildren();
    at.row = Math.max(0, Math.min(at.row, steps.length - 1));
    steps.forEach((r, i) => {
      const on = r.attn || r.mlp, name = `layer ${r.layer}`;
      const row = add("div", `lw-row${on ? "" : " lw-off"}`, list, { role: "listitem" });
      row.dataset.layer = String(r.layer);
      const handle = add("button", "lw-handle", row, { type: "button", "aria-label": `move ${name}, place ${i + 1}` }, "⠿");
      const whole = add("button", "lw-whole", row, { type: "button", "aria-pressed": String(on), "aria-label": name }, String(r.layer));
      const attn = add("button", "lw-attn", row, { type: "button", "aria-pressed": String(r.attn), "aria-label": `attention of ${name}` }, "attn");
      const mlp = add("button", "lw-mlp", row, { type: "button", "aria-pressed": String(r.mlp), "aria-label": `MLP of ${name}` }, "mlp");
      if (!splits) for (const e of [attn, mlp]) e.setAttribute("disabled", "");
      add("span", "lw-by", row, { "aria-hidden": "true" }, "×");
      const times = /** @type {HTMLInputElement} */ (add("input", "lw-times", row, { type: "number", min: "1", max: String(model.get("most")), "aria-label": `times ${name} runs` }));
      times.value = String(r.times);
      whole.addEventListener("click", () => edit(i, { attn: !on, mlp: !on }), { signal });
      attn.addEventListener("click", () => edit(i, { attn: !r.attn }), { signal });
      mlp.addEventListener("click", () => edit(i, { mlp: !r.mlp }), { signal });
      times.addEventListener("change", () => {
        const n = Math.max(1, Math.min(model.get("most"), Math.round(Number(times.value)) || 1));
        times.value = String(n);
        if (n !== r.times) edit(i, { times: n });
      }, { signal });
      handle.addEventListener("pointerdown", (e) => drag(e, row, i), { signal });
      partsOf(row).forEach((e, k) => e.addEventListener("focus", () => { at = { row: i, part: k }; rove(); }, { signal }));
    });
    rove();
    if (had) focusAt();
  }

  /** Drag a row; it lands where the line is. @param {PointerEvent} e @param {HTMLElement} row @param {number} from */
  function drag(e, row, from) {
    if (e.button !== 0) return;
    const handle = /** @type {HTMLElement} */ (e.currentTarget), ends = new AbortController();
    const all = /** @type {HTMLElement[]} */ ([...list.children]);
    let to = from;
    handle.setPointerCapture(e.pointerId);
    row.classList.add("lw-moving");
    const mark = () => all.forEach((r, k) => { r.classList.toggle("lw-before", k === to && to < from); r.classList.toggle("lw-after", k === to && to > from); });
    const end = (/** @type {boolean} */ take) => { ends.abort(); row.classList.remove("lw-moving"); const place = to; to = from; mark(); if (take) move(from, place); };
    handle.addEventListener("pointermove", (m) => {
      const k = all.findIndex((r) => m.clientY < r.getBoundingClientRect().bottom);
      to = k < 0 ? all.length - 1 : k;
      mark();
    }, { signal: ends.signal });
    handle.addEventListener("pointerup", () => end(true), { signal: ends.signal });
    handle.addEventListener("pointercancel", () => end(false), { signal: ends.signal });
    handle.addEventListener("keydown", (k) => { if (k.key === "Escape") { keep(k); end(false); } }, { signal: ends.signal });
  }

  list.addEventListener("keydown", (e) => {
    const typing = e.target instanceof HTMLInputElement, upDown = e.key === "ArrowUp" ? -1 : e.key === "ArrowDown" ? 1 : 0;
    e.stopPropagation(); // or the notebook would act on it
    if (e.altKey && upDown) { keep(e); move(at.row, at.row + upDown); return; }
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (upDown && !typing) { keep(e); at.row = Math.max(0, Math.min(list.children.length - 1, at.row + upDown)); focusAt(); }
    else if (e.key === "ArrowLeft" || e.key === "ArrowRight") { keep(e); at.part = Math.max(0, Math.min(4, at.part + (e.key === "ArrowLeft" ? -1 : 1))); focusAt(); }
    else if ((e.key === "Home" || e.key === "End") && !typing) { keep(e); at.row = e.key === "Home" ? 0 : list.children.length - 1; focusAt(); }
  }, { signal });
  const ask = debounce(() => send(model, { prompt: prompt.value }), 300);
  prompt.addEventListener("input", ask, { signal });
  prompt.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
  reset.addEventListener("click", () => change(rows().length ? [...new Set(rows().map((r) => r.layer))].sort((a, b) => a - b).map((layer) => ({ layer, attn: true, mlp: true, times: 1 })) : [], "the whole model"), { signal });

  /** @param {string} name @param {any[]} found @param {string} other */
  function table(name, found, other) {
    const t = add("table", "lw-top", tables), caption = add("caption", "", t, {}, name), head = add("tr", "", add("thead", "", t));
    caption.setAttribute("dir", "auto");
    for (const h of ["token", "probability", other]) add("th", "", head, { scope: "col" }, h);
    const rest = add("tbody", "", t);
    for (const r of found) {
      const row = add("tr", "", rest);
      add("td", "lw-token", row, { dir: "auto" }, r.token);
      const cell = add("td", "lw-p", row, {}, `${(100 * r.p).toFixed(1)} %`);
      cell.style.backgroundSize = `${100 * r.p}% 100%`;
      add("td", "lw-soft", row, {}, `${(100 * r.other).toFixed(1)} %`);
    }
  }

  function drawAnswer() {
    const a = model.get("answer");
    facts.replaceChildren(); tables.replaceChildren();
    if (!a.top) return;
    /** @param {string} name @param {string} value @param {string} [more] */
    const fact = (name, value, more = "") => { const f = add("div", "lw-fact", facts); add("span", "", f, {}, name); add("b", "", f, {}, value); add("small", "", f, {}, more); };
    fact("KL to the full model", `${say(a.kl)} nats`, "at the last token");
    fact("perplexity", a.perplexity == null ? "…" : say(a.perplexity), a.full_perplexity == null ? "" : `full model ${say(a.full_perplexity)}`);
    fact("steps", String(a.steps), `answered in ${say(a.ms / 1000)} s`);
    table("this board", a.top, "full model");
    table("full model", a.full, "this board");
  }
  function heads() {
    title.textContent = model.get("title"); subtitle.textContent = model.get("subtitle");
    if (document.activeElement !== prompt) prompt.value = model.get("prompt");
  }
  const unwire = wire(model, el, { steps: drawRows, "title subtitle prompt": heads, answer: drawAnswer, "busy progress status error": busy });
  heads(); drawRows(); drawAnswer(); busy();
  return () => { stop.abort(); unwire(); root.remove(); };
}

export default { render };

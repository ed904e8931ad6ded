// The bit board: a slider a layer, a budget with an allocator, and what Python measured.

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const WHOLE = 16, stop = new AbortController(), { signal } = stop;
  /** @param {number} b */
  const said = (b) => (b === WHOLE ? "as is" : `${b} bits`);
  const root = add("div", "lw-widget lw-bits", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const tools = add("div", "lw-tools", root);
  const all = slider(tools, "all layers");
  const budget = add("label", "", tools, {}, "budget ");
  const mb = /** @type {HTMLInputElement} */ (add("input", "lw-budget", budget, { type: "number", min: "0", step: "any", "aria-label": "budget of the blocks in megabytes" }));
  budget.append(" MB ");
  const how = /** @type {HTMLSelectElement} */ (add("select", "lw-how", tools, { "aria-label": "allocator" }));
  for (const name of model.get("allocators")) add("option", "", how, { value: name }, name);
  how.value = "greedy";
  const share = add("button", "lw-share", tools, { type: "button" }, "Allocate");
  const body = add("div", "lw-body", root);
  const list = add("div", "lw-list", body, { role: "group", "aria-label": "bits by layer" });
  const right = add("div", "lw-right", body, { "aria-live": "polite" });
  const facts = add("div", "lw-facts", right), proper = add("div", "lw-proper", right);
  const measure = add("button", "lw-measure", right, { type: "button" }, "Measure properly");
  const busy = activity(model, root, signal);
  /** @type {ReturnType<typeof slider>[]} */
  let sliders = [];

  /** @param {Node} parent @param {string} name */
  function slider(parent, name) {
    const label = add("label", "lw-slider", parent);
    add("span", "", label, {}, name);
    const input = /** @type {HTMLInputElement} */ (add("input", "", label, { type: "range", min: "2", max: "9", step: "1", "aria-label": `bits of ${name}` }));
    const out = add("output", "", label);
    const tell = () => { const b = value(); out.textContent = said(b); input.setAttribute("aria-valuetext", b === WHOLE ? "untouched" : said(b)); };
    const value = () => (Number(input.value) === 9 ? WHOLE : Number(input.value));
    const set = (/** @type {number} */ b) => { input.value = String(b === WHOLE ? 9 : b); tell(); };
    input.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
    input.addEventListener("input", tell, { signal });
    set(WHOLE);
    return { input, out, value, set };
  }
  const ask = debounce(() => send(model, { bits: sliders.map((s) => s.value()) }), 250);
  all.input.addEventListener("input", () => { sliders.forEach((s) => s.set(all.value())); ask(); }, { signal });
  for (const e of [mb, how]) e.addEventListener("keydown", (k) => k.stopPropagation(), { signal });
  const wish = () => send(model, { wish: { megabytes: mb.value === "" ? null : Number(mb.value), technique: how.value, n: (model.get("wish").n ?? 0) + 1 } });
  share.addEventListener("click", wish, { signal });
  mb.addEventListener("keydown", (e) => { if (e.key === "Enter") { keep(e); wish(); } }, { signal });
  measure.addEventListener("click", () => send(model, { measures: model.get("measures") + 1 }), { signal });

  function drawBits() {
    const bits = model.get("bits");
    if (sliders.length !== bits.length) {
      list.replaceChildren();
      sliders = bits.map((/** @type {number} */ _b, /** @type {number} */ i) => { const s = slider(list, `layer ${i}`); s.input.addEventListener("input", ask, { signal }); return s; });
    }
    sliders.forEach((s, i) => { if (s.value() !== bits[i]) s.set(bits[i]); });
    if (bits.every((/** @type {number} */ b) => b === bits[0])) all.set(bits[0]);
    else { all.out.textContent = "mixed"; all.input.setAttribute("aria-valuetext", "mixed"); }
  }
  function drawAnswer() {
    const a = model.get("answer"), p = model.get("proper");
    facts.replaceChildren(); proper.replaceChildren();
    if (a.megabytes === undefined) return;
    /** @param {Node} to @param {string} name @param {string} value @param {string} more */
    const fact = (to, name, value, more) => { const f = add("div", "lw-fact", to); add("span", "", f, {}, name); add("b", "", f, {}, value); add("small", "", f, {}, more); };
    fact(facts, "blocks, packed", `${a.megabytes.toFixed(1)} MB`, `${a.whole_megabytes.toFixed(1)} MB at 16 bits; at least ${a.least_megabytes.toFixed(1)}`);
    fact(facts, "bits a weight", a.bits_per_weight.toFixed(2), `scales included; ${a.rest_megabytes.toFixed(1)} MB outside blocks`);
    fact(facts, "perplexity, short text", a.perplexity == null ? "…" : say(a.perplexity), a.full_perplexity == null ? "" : `${say(a.full_perplexity)} as it is`);
    if (p.perplexity !== undefined) fact(proper, `perplexity, ${p.texts} texts`, say(p.perplexity), `${say(p.full_perplexity)} as it is; ${p.tokens} tokens`);
    if (!mb.value) mb.value = (a.whole_megabytes / 4).toFixed(1);
  }
  function heads() { title.textContent = model.get("title"); subtitle.textContent = model.get("subtitle"); }
  const unwire = wire(model, el, { bits: drawBits, "title subtitle": heads, "answer proper": drawAnswer, "busy progress status error": busy });
  heads(); drawBits(); drawAnswer(); busy();
  return () => { stop.abort(); unwire(); root.remove(); };
}

export default { render };

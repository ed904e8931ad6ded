// @ts-check
// The circuit graph: Python draws the picture, this file wires the slider, the nodes and the button.

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-circuit", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const tools = add("div", "lw-tools", root);
  const label = add("label", "", tools, {}, "Edges to keep ");
  const slider = /** @type {HTMLInputElement} */ (add("input", "lw-slide", label, { type: "range", min: "0", step: "any", "aria-label": "edges to keep" }));
  const count = /** @type {HTMLInputElement} */ (add("input", "lw-keep", tools, { type: "number", min: "0", step: "1", "aria-label": "number of edges to keep" }));
  const ask = add("button", "lw-measure", tools, { type: "button" }, "Measure what is left");
  const note = add("div", "lw-note", root, { role: "status", "aria-live": "polite" });
  const key = add("div", "lw-key", root);
  add("span", "lw-swatch lw-helps", key); add("span", "", key, {}, "helps the answer");
  add("span", "lw-swatch lw-hinders", key); add("span", "", key, {}, "works against it; arrows move, Enter selects, Escape lets go");
  const box = add("div", "lw-graph", root);
  const readout = add("div", "lw-readout", root, { role: "status", "aria-live": "polite" });
  const answer = add("div", "lw-answer", root, { role: "status", "aria-live": "polite" });
  const live = activity(model, root, signal);
  const rows = add("div", "lw-answers", root);
  let rev = 0, here = "";

  // Few edges matter most: beyond 200 the slider is logarithmic.
  const most = () => model.get("most"), log = () => most() > 200;
  const toSlide = (/** @type {number} */ n) => (log() ? Math.log1p(n) : n);
  const fromSlide = (/** @type {number} */ v) => Math.round(log() ? Math.expm1(v) : v);
  const nodes = () => /** @type {SVGGElement[]} */ ([...box.querySelectorAll("g.lw-node")]);
  const idOf = (/** @type {Element} */ g) => g.getAttribute("data-id") ?? "";
  const nodeOf = (/** @type {Event} */ e) => /** @type {Element} */ (e.target).closest?.("g.lw-node") ?? null;

  /** Show the edges of one node, or of all. @param {string} id */
  const look = (id) => {
    const shown = id || model.get("picked");
    box.classList.toggle("lw-looking", Boolean(shown));
    box.querySelectorAll(".lw-edge").forEach((p) => {
      p.removeAttribute("opacity");
      p.classList.toggle("lw-on", p.getAttribute("data-a") === shown || p.getAttribute("data-b") === shown);
    });
    const node = nodes().find((g) => idOf(g) === shown);
    readout.textContent = node ? node.getAttribute("aria-label") : "Point at a component to see what it reads and feeds.";
  };
  const mark = () => {
    const picked = model.get("picked");
    nodes().forEach((g) => g.setAttribute("aria-pressed", String(idOf(g) === picked)));
    look("");
  };
  const draw = () => {
    const focused = box.contains(document.activeElement);
    box.innerHTML = model.get("svg"); // our own Python's picture; names are escaped there
    const all = nodes(), at = all.find((g) => idOf(g) === here) ?? all[0];
    if (at) { at.setAttribute("tabindex", "0"); here = idOf(at); if (focused) at.focus(); }
    mark();
    root.dataset.rev = String(++rev);
  };
  const numbers = () => {
    title.textContent = model.get("title"); subtitle.textContent = model.get("subtitle");
    const keep = model.get("keep");
    slider.max = String(toSlide(most())); count.max = String(most());
    if (fromSlide(Number(slider.value)) !== keep) slider.value = String(toSlide(keep));
    if (document.activeElement !== count) count.value = String(keep);
    slider.setAttribute("aria-valuetext", `${keep} of ${most()} edges`);
    slider.disabled = count.disabled = model.get("fixed") || !most();
    note.textContent = model.get("note");
  };
  const told = () => {
    answer.textContent = model.get("answer");
    rows.replaceChildren();
    const t = model.get("table");
    if (!t?.rows?.length) return;
    const table = add("table", "", rows), head = (add("caption", "", table, {}, t.caption), add("tr", "", add("thead", "", table)));
    t.columns.forEach((/** @type {string} */ c) => add("th", "", head, { scope: "col" }, c));
    const body = add("tbody", "", table);
    t.rows.forEach((/** @type {string[]} */ r) => { const line = add("tr", "", body); r.forEach((c) => add("td", "", line, {}, c)); });
  };
  const busy = () => {
    live();
    ask.toggleAttribute("disabled", !model.get("measures"));
    ask.title = model.get("measures") ? "" : "needs a model and a task: circuit(scores, net, task)";
  };

  let wanted = -1;
  const change = (/** @type {number} */ n) => { if (Number.isFinite(n) && n >= 0 && n <= most()) { wanted = n; later(); } };
  const later = debounce(() => { if (!signal.aborted && wanted !== model.get("keep")) send(model, { keep: wanted }); }, 60);
  slider.addEventListener("input", () => { count.value = String(fromSlide(Number(slider.value))); change(Number(count.value)); }, { signal });
  slider.addEventListener("keydown", (e) => {
    // One press is one edge, also where the slider is logarithmic.
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[e.key];
    e.stopPropagation();
    if (!by) return;
    keep(e);
    const n = Math.max(0, Math.min(most(), Number(count.value) + by));
    count.value = String(n); slider.value = String(toSlide(n)); change(n);
  }, { signal });
  count.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
  count.addEventListener("input", () => { if (count.value !== "") change(Math.round(Number(count.value))); }, { signal });
  ask.addEventListener("click", () => send(model, { asked: model.get("asked") + 1 }), { signal });

  const pick = (/** @type {string} */ id) => send(model, { picked: id === model.get("picked") ? "" : id });
  box.addEventListener("click", (e) => { const g = nodeOf(e); if (g) { step(g); pick(idOf(g)); } }, { signal });
  box.addEventListener("pointerover", (e) => { const g = nodeOf(e); if (g) look(idOf(g)); }, { signal });
  box.addEventListener("pointerout", (e) => { if (nodeOf(e)) look(""); }, { signal });
  box.addEventListener("focusin", (e) => { const g = nodeOf(e); if (g) look(idOf(g)); }, { signal });
  box.addEventListener("focusout", () => look(""), { signal });
  /** Focus a node; only it is in the tab order. @param {Element} g */
  const step = (g) => {
    nodes().forEach((o) => o.setAttribute("tabindex", o === g ? "0" : "-1"));
    here = idOf(g); /** @type {SVGGElement} */ (g).focus();
  };
  box.addEventListener("keydown", (e) => {
    const g = nodeOf(e);
    if (!g) return;
    if (e.key === "Enter" || e.key === " ") { keep(e); pick(idOf(g)); return; }
    if (e.key === "Escape") { keep(e); send(model, { picked: "" }); return; }
    const to = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[e.key];
    if (!to) return;
    keep(e);
    const place = (/** @type {Element} */ n) => [Number(n.getAttribute("data-x")), Number(n.getAttribute("data-y"))];
    const [x, y] = place(g);
    let best = null, least = Infinity;
    for (const n of nodes()) {
      const [u, v] = place(n), dx = u - x, dy = v - y;
      const along = dx * to[0] + dy * to[1], aside = Math.abs(dx * to[1]) + Math.abs(dy * to[0]);
      if (along <= 1 || (to[0] && aside > 1)) continue; // sideways within the row only
      const far = along * 3 + aside;
      if (far < least) { least = far; best = n; }
    }
    if (best) step(best);
  }, { signal });

  const end = wire(model, root, {
    svg: draw, picked: mark, "keep most fixed note title subtitle": numbers, "answer table": told,
    "busy progress status error measures": busy,
  });
  draw(); numbers(); told(); busy();
  return () => { stop.abort(); end(); root.remove(); };
}

export default { render };

// @ts-check
// Text on colours, one block a row; the token under the pointer is marked in every row at once.

/** @param {{model: any, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-tokens", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const body = add("div", "lw-strip", root, { tabindex: "0", role: "application", "aria-roledescription": "token strip" });
  const scale = add("div", "lw-scale", root, { "aria-hidden": "true" });
  const readout = add("div", "lw-readout", root, { role: "status", "aria-live": "polite" });
  const answer = add("div", "lw-said", root, { "aria-live": "polite" });
  const error = add("div", "lw-error", root, { role: "alert" });
  /** @type {HTMLElement[][]} */
  let spans = [];
  let grid = new Float32Array(0), marked = -1;
  /** @type {string} */
  let built = "";

  function draw() {
    const rows = model.get("rows"), shown = model.get("shown"), [low, high] = model.get("domain");
    grid = floats(model.get("values"));
    title.textContent = model.get("title");
    subtitle.textContent = model.get("subtitle");
    body.setAttribute("aria-label", `${model.get("title")}: ${shown.length} tokens, ${rows.length} rows. Arrow keys read the tokens, Enter picks.`);
    const key = JSON.stringify([rows, shown]);
    if (key !== built) { // the words are the same: only colours change
      built = key;
      marked = -1;
      body.replaceChildren();
      spans = rows.map((/** @type {string} */ name) => {
        const block = add("div", "lw-row", body);
        if (name) add("div", "lw-name", block, {}, name);
        const text = add("div", "lw-text", block, { dir: "auto" });
        const all = shown.map((/** @type {string} */ word, /** @type {number} */ k) => add("span", "lw-token", null, { "data-k": String(k) }, word));
        text.append(...all);
        return all;
      });
    }
    const colours = ramp(model.get("stops"));
    spans.forEach((row, i) => row.forEach((e, k) => {
      const rgb = colourOf(colours, grid[i * shown.length + k], low, high);
      e.classList.toggle("lw-missing", !rgb);
      e.style.background = rgb ? `rgb(${rgb})` : "";
      e.style.color = rgb ? inkOn(rgb) : "";
    }));
    scale.replaceChildren();
    add("span", "", scale, {}, say(low));
    add("span", "lw-ramp", scale).style.background = `linear-gradient(to right, ${model.get("stops").join(",")})`;
    add("span", "", scale, {}, say(high));
    mark();
    root.dataset.rev = String(Number(root.dataset.rev ?? 0) + 1);
  }

  function mark() {
    const k = model.get("focus"), n = model.get("tokens").length;
    if (marked >= 0) for (const row of spans) row[marked]?.classList.remove("lw-here");
    marked = k >= 0 && k < n ? k : -1;
    if (marked < 0) { readout.textContent = "Hover a token, or use the arrow keys, to read its values."; return; }
    for (const row of spans) row[marked].classList.add("lw-here");
    readout.replaceChildren(`token ${k} `);
    add("bdi", "", readout, {}, `“${model.get("shown")[k].trim()}”`);
    readout.append(" — ");
    model.get("rows").forEach((/** @type {string} */ name, /** @type {number} */ i) => {
      readout.append((i ? ", " : "") + (name ? `${name} ` : ""));
      add("b", "", readout, {}, say(grid[i * n + k]));
    });
  }

  const tell = debounce((k) => { if (!signal.aborted && k === model.get("focus")) model.save_changes(); }, 120);
  /** Mark at once, tell Python when the pointer rests. @param {number} k */
  const go = (k) => { if (k !== model.get("focus")) { model.set("focus", k); mark(); tell(k); } };
  /** @param {number} k */
  const pick = (k) => { go(k); send(model, { focus: k, picked: { token: k, n: (model.get("picked").n ?? 0) + 1 } }); };
  /** @param {Event} e */
  const token = (e) => { const k = /** @type {HTMLElement} */ (e.target).dataset.k; return k === undefined ? -1 : Number(k); };
  /** The token above or below another one on the page. @param {number} k @param {number} way */
  const line = (k, way) => {
    const row = spans[0], here = row[k].getBoundingClientRect();
    let best = k, least = Infinity, top = NaN;
    for (let j = k + way; j >= 0 && j < row.length; j += way) {
      const r = row[j].getBoundingClientRect();
      if ((r.top - here.top) * way < 4) continue;
      if (Number.isNaN(top)) top = r.top;
      if (Math.abs(r.top - top) > 4) break;
      const far = Math.abs(r.left - here.left);
      if (far < least) { least = far; best = j; }
    }
    return best;
  };
  body.addEventListener("mouseover", (e) => { const k = token(e); if (k >= 0) go(k); }, { signal });
  body.addEventListener("click", (e) => { const k = token(e); if (k >= 0) pick(k); }, { signal });
  body.addEventListener("focus", () => { if (model.get("focus") < 0) go(0); }, { signal });
  body.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const k = Math.max(0, model.get("focus")), n = model.get("tokens").length;
    const to = { ArrowRight: () => k + 1, ArrowLeft: () => k - 1, Home: () => 0, End: () => n - 1, PageDown: () => k + 20,
      PageUp: () => k - 20, ArrowDown: () => line(k, 1), ArrowUp: () => line(k, -1) }[e.key];
    if (to) { keep(e); go(Math.max(0, Math.min(n - 1, to()))); spans[0]?.[marked]?.scrollIntoView({ block: "nearest" }); }
    else if (e.key === "Enter" || e.key === " ") { keep(e); pick(k); }
  }, { signal });
  const reply = () => { answer.textContent = model.get("answer"); error.textContent = model.get("error"); };
  let due = 0; // the traits of one message come one by one
  const later = () => { if (!due) due = requestAnimationFrame(() => { due = 0; draw(); }); };
  const end = wire(model, el, { "values rows tokens shown domain stops title subtitle": later, focus: mark, "answer error": reply });
  draw(); reply();
  return () => { stop.abort(); cancelAnimationFrame(due); end(); root.remove(); };
}

export default { render };

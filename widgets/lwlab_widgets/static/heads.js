// @ts-check
// The grid of heads; beside it the prompt, the opened head's pattern and the tokens it writes.

/** A model whose traits are the pattern's, so that a second map can show it. @param {any} model */
function patternOf(model) {
  const named = /** @type {Record<string, string>} */ ({ values: "pattern", row_labels: "pattern_labels", column_labels: "pattern_labels", title: "pattern_title", stops: "pattern_stops" });
  const own = /** @type {Record<string, any>} */ ({ maps: [""], shown: 0, row_title: "Query", column_title: "Key: token", value_title: "attention", subtitle: "",
    domain: [0, 1], lower: false, picked: {}, handled: 0, listening: false, answer: "", error: "" });
  const event = (/** @type {string} */ e) => { const k = e.replace("change:", ""); return named[k] ? `change:${named[k]}` : ""; };
  return {
    get: (/** @type {string} */ k) => (named[k] ? model.get(named[k]) : own[k]),
    set: (/** @type {string} */ k, /** @type {any} */ v) => { own[k] = v; },
    save_changes: () => {},
    on: (/** @type {string} */ e, /** @type {() => void} */ f) => { if (event(e)) model.on(event(e), f); },
    off: (/** @type {string} */ e, /** @type {() => void} */ f) => { if (event(e)) model.off(event(e), f); },
  };
}

/** @param {{model: any, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-heads", el);
  const asked = add("label", "lw-ask", root);
  add("span", "", asked, {}, "Prompt");
  const prompt = /** @type {HTMLTextAreaElement} */ (add("textarea", "lw-prompt", asked, { rows: "2", dir: "auto", spellcheck: "false", placeholder: "Type something to see each head at work" }));
  const map = heatMap({ model, el: add("div", "lw-holder", root) });
  const live = activity(model, root, signal);
  const opened = add("div", "lw-opened", root), sight = add("div", "lw-sight", opened);
  const table = add("div", "lw-answers", opened, { "aria-live": "polite" });
  let typed = false;
  const ask = debounce(() => { typed = false; if (!signal.aborted && prompt.value !== model.get("prompt")) send(model, { prompt: prompt.value }); }, 300);
  prompt.addEventListener("input", (e) => { typed = true; if (!(/** @type {InputEvent} */ (e).isComposing)) ask(); }, { signal });
  prompt.addEventListener("compositionend", ask, { signal });
  prompt.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
  /** @type {(() => void) | null} */
  let pattern = null;
  const open = () => {
    const any = model.get("pattern_labels").length > 0;
    opened.hidden = !any;
    if (any && !pattern) pattern = heatMap({ model: patternOf(model), el: sight });
    fillTable(table, model.get("table"));
  };
  const type = () => { if (!typed) prompt.value = model.get("prompt"); asked.hidden = !model.get("opens"); };
  const end = wire(model, root, { prompt: type, opens: type, "table pattern_labels": open, "busy progress status error": live });
  type(); open(); live();
  return () => { stop.abort(); end(); map(); pattern?.(); root.remove(); };
}

export default { render };

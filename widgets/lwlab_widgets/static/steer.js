// The steering dial: layer and strength, and two texts that grow while Python generates.

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-steer", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const asks = add("label", "lw-ask", root, {}, "Prompt ");
  const prompt = /** @type {HTMLInputElement} */ (add("input", "lw-prompt", asks, { type: "text", spellcheck: "false", dir: "auto" }));
  const tools = add("div", "lw-tools", root);
  /** @param {string} name @param {Record<string, string>} range */
  function slider(name, range) {
    const label = add("label", "lw-slider", tools, {}, `${name} `);
    const input = /** @type {HTMLInputElement} */ (add("input", `lw-${name}`, label, { type: "range", "aria-label": name, ...range }));
    return { input, out: add("output", "", label) };
  }
  const layer = slider("layer", { min: "0", step: "1", max: String(model.get("n_layers") - 1) });
  const limit = model.get("limit");
  const strength = slider("strength", { min: String(-limit), max: String(limit), step: String(limit / 40) });
  const off = add("button", "lw-zero", tools, { type: "button" }, "No steering");
  const body = add("div", "lw-body", root);
  /** @param {string} name @param {string} heading */
  function pane(name, heading) {
    const box = add("section", `lw-pane lw-${name}`, body, { "aria-label": heading });
    add("h4", "", box, {}, heading);
    const p = add("p", "", box, { dir: "auto", "aria-live": "polite" });
    return { before: add("span", "lw-soft", p), text: add("b", "lw-text", p) };
  }
  const base = pane("base", "As it is"), steered = pane("steered", "Steered");
  const busy = activity(model, root, signal);

  const tell = () => {
    layer.out.textContent = layer.input.value;
    strength.out.textContent = say(Number(strength.input.value));
    strength.input.setAttribute("aria-valuetext", say(Number(strength.input.value)));
  };
  const ask = debounce(() => send(model, { layer: Number(layer.input.value), strength: Number(strength.input.value) }), 200);
  for (const s of [layer, strength]) {
    s.input.addEventListener("input", () => { tell(); ask(); }, { signal });
    s.input.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
  }
  off.addEventListener("click", () => { strength.input.value = "0"; tell(); ask(); }, { signal });
  const write = debounce(() => send(model, { prompt: prompt.value }), 400);
  prompt.addEventListener("input", write, { signal });
  prompt.addEventListener("keydown", (e) => e.stopPropagation(), { signal });

  function draw() {
    title.textContent = model.get("title");
    subtitle.textContent = `${model.get("subtitle")}; what is added is ${say(model.get("share"))} of the stream's length`;
    if (document.activeElement !== prompt) prompt.value = model.get("prompt");
    for (const p of [base, steered]) p.before.textContent = model.get("prompt");
    base.text.textContent = model.get("base");
    steered.text.textContent = model.get("steered");
  }
  function dials() {
    layer.input.value = String(model.get("layer"));
    strength.input.value = String(model.get("strength"));
    tell();
  }
  const unwire = wire(model, el, { "title subtitle prompt base steered share": draw, "layer strength": dials, "busy progress status error": busy });
  draw(); dials(); busy();
  return () => { stop.abort(); unwire(); root.remove(); };
}

export default { render };

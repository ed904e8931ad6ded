// @ts-check
// A prompt box and a choice of colours over the map; below it the picked cell's ten likeliest tokens.

const CHOICES = [["probability", "probability"], ["entropy", "entropy"], ["kl", "KL to the last layer"], ["rank", "rank of the target"]];

/** @param {{model: any, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop;
  const root = add("div", "lw-widget lw-lens", el);
  const form = add("div", "lw-form", root);
  const asked = add("label", "lw-grow", form);
  add("span", "", asked, {}, "Prompt");
  const prompt = /** @type {HTMLTextAreaElement} */ (add("textarea", "lw-prompt", asked, { rows: "2", dir: "auto", spellcheck: "false", placeholder: "Type something" }));
  const aimed = add("label", "", form);
  add("span", "", aimed, {}, "Target word");
  const target = /** @type {HTMLInputElement} */ (add("input", "lw-target", aimed, { type: "text", dir: "auto", size: "12", placeholder: "e.g. ␣Paris", title: "one token, with its leading space" }));
  const colours = add("fieldset", "lw-colours", root);
  add("legend", "lw-unseen", colours, {}, "Colour the cells by");
  const group = `lw-${Math.random().toString(36).slice(2)}`;
  const radios = CHOICES.map(([value, text]) => {
    const label = add("label", "", colours);
    const input = /** @type {HTMLInputElement} */ (add("input", "", label, { type: "radio", name: group, value }));
    add("span", "", label, {}, text);
    input.addEventListener("change", () => send(model, { colour: value }), { signal });
    return input;
  });
  const live = activity(model, root, signal);
  const map = heatMap({ model, el: add("div", "lw-holder", root) });
  const table = add("div", "lw-answers", root, { "aria-live": "polite" });

  /** Send what was typed when the typing rests. @param {HTMLInputElement | HTMLTextAreaElement} box @param {string} trait */
  const listen = (box, trait) => {
    let typed = false;
    const ask = debounce(() => { typed = false; if (!signal.aborted && box.value !== model.get(trait)) send(model, { [trait]: box.value }); }, 300);
    box.addEventListener("input", (e) => { typed = true; if (!(/** @type {InputEvent} */ (e).isComposing)) ask(); }, { signal });
    box.addEventListener("compositionend", ask, { signal });
    box.addEventListener("keydown", (e) => e.stopPropagation(), { signal });
    return () => { if (!typed) box.value = model.get(trait); }; // what is being typed is not overwritten
  };
  const showPrompt = listen(prompt, "prompt"), showTarget = listen(target, "target");
  const choose = () => {
    radios.forEach((r) => { r.checked = r.value === model.get("colour"); });
    radios[3].disabled = !model.get("target");
  };
  const tabulate = () => fillTable(table, model.get("table"));
  const end = wire(model, root, {
    prompt: showPrompt, target: () => { showTarget(); choose(); }, colour: choose, table: tabulate,
    "busy progress status error": live,
  });
  showPrompt(); showTarget(); choose(); tabulate(); live();
  return () => { stop.abort(); end(); map(); root.remove(); };
}

export default { render };

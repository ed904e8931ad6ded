// @ts-check
// Shared by the instruments: Python puts this text before each of theirs, because a module that is
// loaded from a notebook cannot import its neighbours.

/** @typedef {{get: (k: string) => any, set: (k: string, v: any) => void, save_changes: () => void,
 *   on: (e: string, f: () => void) => void, off: (e: string, f: () => void) => void}} AnyModel */

/** Make an element. @param {string} tag @param {string} name @param {Node | null} parent
 *  @param {Record<string, string>} [attrs] @param {string} [text] */
function add(tag, name, parent, attrs = {}, text = "") {
  const e = document.createElement(tag);
  if (name) e.className = name;
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  if (text) e.textContent = text;
  if (parent) parent.appendChild(e);
  return e;
}

/** A number with three digits and a real minus sign. @param {number} v */
const say = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(3))).replace("-", "−") : "no value");

/** @param {string} colour "#rrggbb" */
const rgbOf = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** Colours between the stops, [r, g, b] for each of 256 steps. @param {string[]} stops */
function ramp(stops) {
  const rgb = stops.map(rgbOf);
  return Array.from({ length: 256 }, (_, k) => {
    const at = (k / 255) * (rgb.length - 1), i = Math.min(Math.floor(at), rgb.length - 2), f = at - i;
    return [0, 1, 2].map((c) => Math.round(rgb[i][c] * (1 - f) + rgb[i + 1][c] * f));
  });
}

/** How bright a colour looks, 0 to 1 (WCAG's relative luminance). @param {number[]} rgb */
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c <= 10 ? c / 3294 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

/** Black or white, whichever has more contrast with a colour. @param {number[]} rgb */
const inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

/** The ramp's colour of a value, or null where there is none.
 *  @param {number[][]} colours @param {number} v @param {number} low @param {number} high */
const colourOf = (colours, v, low, high) =>
  Number.isFinite(v) ? colours[Math.round(255 * Math.max(0, Math.min(1, (v - low) / (high - low || 1))))] : null;

/** Floats out of a trait's bytes, copied so that they are aligned. @param {DataView} view */
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

/** Call `f` once, `ms` after the last call. @param {(...a: any[]) => void} f @param {number} ms */
function debounce(f, ms) {
  let timer = 0;
  return (/** @type {any[]} */ ...a) => { clearTimeout(timer); timer = setTimeout(() => f(...a), ms); };
}

/** Set traits and send them in one message. @param {AnyModel} model @param {Record<string, any>} traits */
function send(model, traits) {
  for (const [k, v] of Object.entries(traits)) model.set(k, v);
  model.save_changes();
}

/** Keep a key press from JupyterLab, which would move to another cell. @param {KeyboardEvent} e */
function keep(e) { e.preventDefault(); e.stopPropagation(); }

/** What every live instrument shows below itself: progress with Cancel, and errors.
 *  @param {AnyModel} model @param {HTMLElement} root @param {AbortSignal} signal */
function activity(model, root, signal) {
  const line = add("div", "lw-activity", root, { role: "status", "aria-live": "polite" });
  const bar = /** @type {HTMLProgressElement} */ (add("progress", "", line, { max: "1", "aria-label": "progress" }));
  const text = add("span", "lw-status", line);
  const cancel = add("button", "lw-cancel", line, { type: "button" }, "Cancel");
  const error = add("div", "lw-error", root, { role: "alert" });
  cancel.addEventListener("click", () => send(model, { cancel: (model.get("cancel") ?? 0) + 1 }), { signal });
  return () => {
    const busy = Boolean(model.get("busy"));
    line.classList.toggle("lw-idle", !busy);
    root.setAttribute("aria-busy", String(busy));
    const done = model.get("progress") ?? -1;
    if (done >= 0) bar.value = done; else bar.removeAttribute("value");
    text.textContent = busy ? model.get("status") || "working…" : "";
    cancel.toggleAttribute("disabled", !busy);
    error.textContent = busy ? "" : model.get("error");
  };
}

/** Connect traits to what they change, redraw on a new size or theme; returns the clean-up.
 *  @param {AnyModel} model @param {HTMLElement} el @param {Record<string, () => void>} reactions
 *  @param {() => void} [redraw] */
function wire(model, el, reactions, redraw) {
  const pairs = Object.entries(reactions).flatMap(([keys, f]) => keys.split(" ").map((k) => /** @type {const} */ ([`change:${k}`, f])));
  for (const [event, f] of pairs) model.on(event, f);
  /** @type {(() => void)[]} */
  const ends = [() => { for (const [event, f] of pairs) model.off(event, f); }];
  if (redraw) {
    let due = 0;
    const later = () => { if (!due) due = requestAnimationFrame(() => { due = 0; redraw(); }); };
    const sizes = new ResizeObserver(later), themes = new MutationObserver(later);
    sizes.observe(el);
    themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    ends.push(() => { sizes.disconnect(); themes.disconnect(); cancelAnimationFrame(due); });
  }
  return () => ends.forEach((f) => f());
}

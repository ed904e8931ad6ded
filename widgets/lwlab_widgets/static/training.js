// A training run: its knobs, its buttons, and one small plot a panel, redrawn as numbers come.

/** @param {{model: AnyModel, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController(), { signal } = stop, SVG = "http://www.w3.org/2000/svg";
  const root = add("div", "lw-widget lw-training", el);
  const title = add("div", "lw-title", root), subtitle = add("div", "lw-subtitle", root);
  const tools = add("div", "lw-tools", root);
  /** @type {[string, HTMLSelectElement][]} */
  const knobs = model.get("knobs").map((/** @type {{name: string, options: any[]}} */ k) => {
    const label = add("label", "lw-knob", tools, {}, `${k.name.replaceAll("_", " ")} `);
    const select = /** @type {HTMLSelectElement} */ (add("select", "", label));
    k.options.forEach((o, i) => add("option", "", select, { value: String(i) }, String(o)));
    select.addEventListener("change", () => {
      send(model, { values: { ...model.get("values"), [k.name]: k.options[Number(select.value)] } });
    }, { signal });
    return [k.name, select];
  });
  let count = 0;
  /** @param {string} text @param {string} what */
  function button(text, what) {
    const b = add("button", "", tools, { type: "button" }, text);
    b.addEventListener("click", () => send(model, { orders: { do: what, n: ++count + Math.random() } }), { signal });
    return b;
  }
  button("Start anew", "start");
  const pause = button("Pause", "pause"), on = button("Go on", "go on");
  const body = add("div", "lw-panels", root);
  const busy = activity(model, root, signal);
  const colours = model.get("colours");

  const plots = model.get("panels").map((/** @type {{title: string, series: [string, number][]}} */ p) => {
    const figure = add("figure", "", body);
    add("figcaption", "", figure, {}, p.title);
    const key = add("div", "lw-key", figure);
    const said = p.series.map(([name], j) => {
      const s = add("span", "", key);
      s.style.setProperty("--lw-line-colour", colours[j]);
      return { s, name: name.replaceAll("_", " ") };
    });
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", p.title);
    figure.appendChild(svg);
    const range = add("div", "lw-range", figure);
    return { p, said, svg, low: add("span", "", range), high: add("span", "", range) };
  });

  function draw() {
    const columns = 1 + Math.max(0, ...model.get("panels").flatMap((/** @type {any} */ p) => p.series.map((/** @type {any} */ s) => s[1] + 1)));
    const data = model.get("data"), values = data && data.byteLength ? floats(data) : new Float32Array();
    const n = Math.floor(values.length / columns), total = model.get("total");
    for (const { p, said, svg, low, high } of plots) {
      const all = p.series.flatMap((/** @type {[string, number]} */ [, k]) => Array.from({ length: n }, (_, i) => values[i * columns + 1 + k])).filter(Number.isFinite);
      const bottom = Math.min(0, ...all), top = Math.max(...all, bottom < 0 ? -Infinity : 1);
      svg.replaceChildren();
      p.series.forEach((/** @type {[string, number]} */ [, k], /** @type {number} */ j) => {
        const points = [];
        let last = NaN;
        for (let i = 0; i < n; i++) {
          const v = values[i * columns + 1 + k];
          if (!Number.isFinite(v)) continue;
          last = v;
          points.push(`${(100 * values[i * columns]) / total},${100 * (1 - (v - bottom) / (top - bottom || 1))}`);
        }
        const line = document.createElementNS(SVG, "polyline");
        line.setAttribute("points", points.join(" "));
        line.setAttribute("stroke", colours[j]);
        svg.appendChild(line);
        said[j].s.textContent = n ? `${said[j].name} ${say(last)}` : said[j].name;
      });
      for (const [name, at] of model.get("marks")) {
        const line = document.createElementNS(SVG, "line");
        for (const [a, v] of Object.entries({ class: "lw-mark", x1: (100 * at) / total, x2: (100 * at) / total, y1: 0, y2: 100 })) line.setAttribute(a, String(v));
        const about = document.createElementNS(SVG, "title");
        about.textContent = `${name}: step ${at}`;
        line.appendChild(about);
        svg.appendChild(line);
      }
      low.textContent = n ? `${say(bottom)} to ${say(top)}` : "";
      high.textContent = `${total} steps`;
    }
  }
  function dials() {
    title.textContent = model.get("title");
    subtitle.textContent = model.get("subtitle");
    const values = model.get("values");
    model.get("knobs").forEach((/** @type {{name: string, options: any[]}} */ k, /** @type {number} */ i) => {
      knobs[i][1].value = String(k.options.indexOf(values[k.name]));
    });
  }
  function state() {
    busy();
    pause.toggleAttribute("disabled", !model.get("busy"));
    on.toggleAttribute("disabled", model.get("busy") || !model.get("paused"));
  }
  const unwire = wire(model, el, { "data marks": draw, "values title subtitle": dials, "busy progress status error paused": state });
  draw(); dials(); state();
  return () => { stop.abort(); unwire(); root.remove(); };
}

export default { render };

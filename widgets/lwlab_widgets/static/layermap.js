// @ts-check
// The map, the progress of a patch that was clicked, and the tokens before and after it.

/** @param {{model: any, el: HTMLElement}} context */
function render({ model, el }) {
  const stop = new AbortController();
  const root = add("div", "lw-widget lw-layermap", el);
  const map = heatMap({ model, el: add("div", "lw-holder", root) });
  const brushed = add("div", "lw-region", root, { role: "status", "aria-live": "polite" });
  const table = add("div", "lw-answers", root, { "aria-live": "polite" });
  const live = activity(model, root, stop.signal);
  const tabulate = () => { fillTable(table, model.get("table")); table.style.opacity = model.get("busy") ? "0.5" : ""; };
  const tell = () => {
    const r = model.get("region"), rows = model.get("row_labels"), columns = model.get("column_labels");
    brushed.textContent = r.rows ? `Region: ${model.get("row_title")} ${rows[r.rows[0]]} to ${rows[r.rows[1]]}, ${model.get("column_title").replace(/: token$/, "")} ${columns[r.columns[0]]} to ${columns[r.columns[1]]} (Escape clears it)` : "";
  };
  const end = wire(model, root, { table: tabulate, region: tell, "busy progress status error": () => { live(); tabulate(); } });
  tabulate(); tell(); live();
  return () => { stop.abort(); end(); map(); root.remove(); };
}

export default { render };

// Filters of the atlas: each row says in data-* what it is; a filter left at "all" asks nothing.
(() => {
  const atlas = document.getElementById("atlas");
  const rows = [...atlas.querySelectorAll("tbody tr")];
  const filters = [...atlas.querySelectorAll("[data-filter]")];
  const count = atlas.querySelector(".count");

  const wanted = (row, filter) => {
    const name = filter.dataset.filter;
    const value = filter.type === "checkbox" ? (filter.checked ? "1" : "") : filter.value.trim();
    if (!value) return true;
    if (name === "text") return row.textContent.toLowerCase().includes(value.toLowerCase());
    const own = row.dataset[name] || "";
    if (name === "cost") return own !== "" && Number(own) <= Number(value);
    return own.split("|").includes(value);
  };

  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !filters.every((f) => wanted(row, f));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} papers`;
  };

  for (const f of filters) f.addEventListener("input", apply);
  apply();
})();

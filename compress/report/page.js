"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const settings = { responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: false };
  const plots = Object.keys(figures).map((id) => document.getElementById(id)).filter(Boolean);
  for (const plot of plots) {
    const { data, layout } = figures[plot.id];
    Plotly.newPlot(plot, data, layout, settings);
  }

  // Paper is narrower than the window and no resize event announces it.
  const refit = (width) => plots.forEach((plot) => Plotly.relayout(plot, width ? { autosize: false, width } : { autosize: true, width: null }));
  window.addEventListener("beforeprint", () => refit(640));
  window.addEventListener("afterprint", () => refit(null));

  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = head.closest("table");
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => down * compare(key(a, head.cellIndex), key(b, head.cellIndex)));
      table.tBodies[0].append(...rows);
    });
  }
})();

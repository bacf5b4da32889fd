"use strict";
// Search, filters and sorting. Their state is in the address (#search=...&op=...&column=...&sort=TABLE,COLUMN,descending),
// so that a link can lead to it. Without this script every row is shown.
{
  const byId = id => document.getElementById(id);
  const normal = text => text.toLowerCase().replaceAll(",", "");
  const search = byId("search"), count = byId("count");
  const selects = [...document.querySelectorAll("select[data-filter]")];
  const clocks = [...document.querySelectorAll("input[name=column]")];
  const tables = [...document.querySelectorAll("table.data")].map(table => ({
    box: table.parentElement,
    block: table.closest("[data-column]"),
    rows: [...table.tBodies[0].rows].map(row => ({
      row, text: normal(`${row.textContent} ${row.dataset.search ?? ""}`),
    })),
  }));
  let sorted = "";

  function apply() {
    const words = normal(search.value).split(/\s+/).filter(Boolean);
    const filters = selects.filter(select => select.value);
    let shown = 0, all = 0;
    for (const { box, block, rows } of tables) {
      let here = 0;
      for (const { row, text } of rows) {
        const found = words.every(word => text.includes(word)) &&
          filters.every(select => row.dataset[select.dataset.filter] === select.value);
        row.hidden = !found;
        here += found;
      }
      box.hidden = here === 0;
      if (block && getComputedStyle(block).display === "none") continue; // another clock is chosen
      shown += here;
      all += rows.length;
    }
    for (const section of document.querySelectorAll("section:has(table.data)"))
      section.hidden = !section.querySelector(".scroll:not([hidden])");
    count.value = shown === 0 && all > 0 ? "Nothing matches" : `${shown} of ${all} rows`;
    count.classList.toggle("nothing", shown === 0 && all > 0);
  }

  function sort(table, column, direction) {
    const sign = direction === "descending" ? -1 : 1;
    const heads = [...table.tHead.rows[0].cells];
    const key = row => {
      const cell = row.cells[column];
      if (cell === undefined) return null;
      return cell.dataset.value === undefined ? cell.textContent.trim() || null : Number(cell.dataset.value);
    };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === "number" ? -1 : typeof b === "number" ? 1
      : a.localeCompare(b, "en", { numeric: true });
    const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
    // What has no figure comes last in both directions.
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * order(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", direction) : head.removeAttribute("aria-sort"));
    sorted = `${table.id},${column},${direction}`;
  }

  function remember() {
    const state = new URLSearchParams();
    if (search.value) state.set("search", search.value);
    for (const select of selects) if (select.value) state.set(select.dataset.filter, select.value);
    const clock = clocks.find(input => input.checked && !input.defaultChecked);
    if (clock) state.set("column", clock.value);
    if (sorted) state.set("sort", sorted);
    history.replaceState(null, "", `${location.pathname}${location.search}${state.size ? `#${state}` : ""}`);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    search.value = state.get("search") ?? "";
    for (const select of selects) select.value = state.get(select.dataset.filter) ?? "";
    for (const clock of clocks) clock.checked = state.has("column") ? clock.value === state.get("column") : clock.defaultChecked;
    const [id, column, direction] = (state.get("sort") ?? "").split(",");
    const table = byId(id);
    if (table?.matches("table.data") && Number(column) in table.tHead.rows[0].cells)
      sort(table, Number(column), direction === "descending" ? direction : "ascending");
    apply();
  }

  for (const head of document.querySelectorAll("table.data thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    const arrow = document.createElement("i");
    arrow.ariaHidden = "true";
    const [first, ...rest] = head.childNodes;
    button.append(first, arrow, ...rest);
    head.append(button);
    button.addEventListener("click", () => {
      sort(head.closest("table"), head.cellIndex, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
      remember();
    });
  }
  byId("finder").hidden = false;
  for (const control of [search, ...selects, ...clocks])
    control.addEventListener("input", () => { apply(); remember(); });
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    recall();
    document.querySelector("table.data")?.closest("section").scrollIntoView();
  });
  recall();
  document.documentElement.dataset.ready = "yes";
}

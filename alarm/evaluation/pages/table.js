"use strict";
// What the pages share: elements, numbers, the part of the address after #, and a table on Tabulator.
const Page = (() => {
  /** An element. Texts go in as text nodes, never as markup. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  const data = () => JSON.parse(document.getElementById("data").textContent);

  /** A number for reading; "" for none, texts such as "nan" as they are. */
  function number(value, digits = 3) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return String(value).replace("-", "−");
    const size = Math.abs(value);
    const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : digits);
    return text.replace(/-/g, "−");
  }

  const signed = (value) => (typeof value === "number" && value > 0 ? "+" : "") + number(value);

  /** For Tabulator: numbers by size, then texts; what has no value comes last in both directions. */
  function byValue(a, b, rowA, rowB, column, direction) {
    const rank = (value) => (typeof value === "number" || typeof value === "boolean" ? 0
      : value === null || value === undefined || value === "" ? 2 : 1);
    if (rank(a) !== rank(b)) return (rank(a) - rank(b)) * (direction === "desc" ? -1 : 1);
    return typeof a === "string" ? a.localeCompare(b) : (a ?? 0) - (b ?? 0);
  }

  /** Text on one line, cut at `limit` characters. */
  function excerpt(text, limit) {
    const part = text.slice(0, 2 * limit).replace(/\s+/g, " ").trim();
    return part.length > limit || text.length > 2 * limit ? part.slice(0, limit) + "…" : part;
  }

  const hash = () => new URLSearchParams(location.hash.slice(1));

  /** "#..." of the entries that hold something. */
  function hashOf(entries) {
    const found = new URLSearchParams();
    for (const [key, value] of Object.entries(entries)) if (value) found.set(key, value);
    return "#" + found;
  }

  /** Write the state into the address without a step in the history. */
  function setHash(text) {
    if (location.hash !== text) history.replaceState(null, "", text === "#" ? location.pathname + location.search : text);
  }

  /** A function that waits until calls pause. */
  function later(call, wait = 120) {
    let timer = 0;
    return (...values) => {
      clearTimeout(timer);
      timer = setTimeout(() => call(...values), wait);
    };
  }

  /**
   * A table of thousands of rows: `rows` have an `id`. `onChoose(row)` is told which row was chosen, by mouse or by the
   * keys up, down, page up, page down, home and end; `onEnter` of the enter key.
   */
  function table(place, { rows, columns, filter, sort, height, onChoose, onEnter, empty }) {
    const tabulator = new Tabulator(place, {
      data: rows, columns, height, index: "id", layout: "fitColumns", renderVertical: "virtual", rowHeight: 46,
      responsiveLayout: "hide", selectableRows: 1, selectableRowsPersistence: true, headerSortTristate: false,
      columnDefaults: { sorter: byValue, headerSortStartingDir: "desc", resizable: false, headerTooltip: true },
      placeholder: empty, initialFilter: filter ? [{ field: filter, type: {} }] : [], initialSort: sort,
      keybindings: false,
    });
    let chosen = null;
    // the rows as shown; getData copies each of them, which takes 0.3 s for 20,000
    const shown = () => tabulator.rowManager.getDisplayRows().map((row) => row.data);
    const ready = new Promise((done) => tabulator.on("tableBuilt", done));
    place.tabIndex = 0;

    function choose(id, scroll) {
      chosen = id;
      tabulator.deselectRow();
      if (id === null) return;
      const row = tabulator.getRow(id);
      if (!row) return;
      row.select();
      if (scroll && shown().some((one) => one.id === id)) tabulator.scrollToRow(id, "nearest", false).catch(() => {});
    }

    tabulator.on("rowClick", (event, row) => {
      if (event.target.closest("a")) return;
      choose(row.getData().id, false);
      onChoose(row.getData(), "pointer");
    });
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity };
    place.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("a, input, select, button")) return;
      if (event.key === "Enter" && chosen !== null && onEnter) {
        event.preventDefault();
        onEnter();
      }
      if (!(event.key in moves)) return;
      event.preventDefault();
      const order = shown();
      if (!order.length) return;
      const at = order.findIndex((row) => row.id === chosen);
      const to = Math.min(Math.max(at + moves[event.key], 0), order.length - 1); // at is -1 before the first choice
      choose(order[to].id, true);
      onChoose(order[to], "keyboard");
    });
    return { tabulator, ready, choose };
  }

  return { el, data, number, signed, byValue, excerpt, hash, hashOf, setHash, later, table };
})();

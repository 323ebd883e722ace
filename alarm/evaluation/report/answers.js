"use strict";
// The answers of a comparison. Every text of the data goes in as a text node.
(() => {
  const { el, number, excerpt } = Page;
  const data = Page.data();
  const { runs, seeds, criteria, prompts } = data;
  const HOLISTIC = "holistic_reward";
  const byId = (id) => document.getElementById(id);
  const pairs = runs.length > 1;
  const RESULTS = [["", "all"], ["a", "first run wins"], ["tie", "tie"], ["b", "second run wins"], ["none", "no verdict"]];
  const state = { q: "", seed: 0, a: 0, b: pairs ? 1 : 0, by: HOLISTIC, result: "", order: "spread:desc", split: false, row: null };
  const place = new Array(prompts.length);
  data.random.forEach((row, at) => (place[row] = at));

  /** 1: the first run wins, 0: tie, -1: the second wins, null: unknown. */
  function verdict(criterion, row) {
    const { a, b, seed } = state;
    if (a === b) return null;
    const found = data.verdicts[`${Math.min(a, b)}/${Math.max(a, b)}`][criterion][seed][row];
    return found === null || a < b ? found : -found || 0;
  }
  const value = (metric, run, row) => data.metrics[metric][state.seed][run][row];
  const metrics = Object.keys(data.metrics);
  const splits = (row) => verdict(HOLISTIC, row.id) && criteria.some(({ name }) => verdict(name, row.id) * verdict(HOLISTIC, row.id) < 0);

  const rows = prompts.map((prompt, id) => ({ id, prompt }));
  function fill() {
    for (const row of rows) {
      row.spread = data.spread[state.seed][row.id];
      row.random = place[row.id];
      for (const { name } of criteria) row[`v:${name}`] = pairs ? verdict(name, row.id) : null;
      for (const metric of metrics) row[`d:${metric}`] = pairs ? value(metric, state.a, row.id) - value(metric, state.b, row.id) : value(metric, 0, row.id);
    }
  }
  fill();

  const entries = (row, by = state.by) => ({
    q: state.q, seed: seeds[state.seed], a: pairs ? runs[state.a] : "", b: pairs ? runs[state.b] : "", by, result: state.result,
    order: state.order === "spread:desc" ? "" : state.order, split: state.split ? "yes" : "", row: row === null ? "" : String(row + 1),
  });
  const linkTo = (row, by) => Page.hashOf({ ...entries(row, by), q: "", result: "", order: "", split: "" });
  const winner = (found) => (found === null ? "–" : found === 0 ? "=" : runs[found > 0 ? state.a : state.b]);
  const verdictCell = (name) => (cell) => {
    const id = cell.getData().id;
    return el("a", { href: linkTo(id, name), title: "Read both answers", class: "clip" }, winner(cell.getValue()));
  };
  const width = (title) => Math.min(150, 24 + 9 * Math.max(...title.split(/[_ ]/).map((word) => word.length)));
  const heading = (title) => title.replaceAll("_", " ");
  const columns = [
    { title: "#", field: "id", width: 52, responsive: 2, hozAlign: "right", formatter: (cell) => el("a", { href: linkTo(cell.getValue()), title: "Link to this prompt" }, String(cell.getValue() + 1)) },
    { title: "prompt", field: "prompt", minWidth: 170, widthGrow: 3, responsive: 0, formatter: (cell) => el("div", { class: "clip", dir: "auto" }, excerpt(cell.getValue(), 240)) },
    ...criteria.map(({ name, title }, at) => pairs
      ? { title: heading(title), field: `v:${name}`, minWidth: Math.max(96, width(title)), widthGrow: 1, responsive: name === HOLISTIC || name === "judge" ? 1 : 4 + at, formatter: verdictCell(name) }
      : { title: heading(title), field: `d:${name}`, width: Math.max(96, width(title)), responsive: 2 + at, hozAlign: "right", formatter: (cell) => number(cell.getValue()) }),
    { title: "spread", field: "spread", width: 98, responsive: 3, visible: pairs, hozAlign: "right", formatter: (cell) => number(cell.getValue()), headerTooltip: "Largest less smallest holistic reward over all runs" },
    ...(pairs ? metrics.map((name) => ({ title: name, field: `d:${name}`, visible: false })) : []),
    { title: "random", field: "random", visible: false },
  ];
  const ORDERS = [
    ["spread:desc", "holistic rewards differ most (all runs)"], ["id:asc", "prompt"], ["random:asc", "random"],
    ...metrics.flatMap((name) => pairs
      ? [[`d:${name}:desc`, `${heading(name)}: first run higher`], [`d:${name}:asc`, `${heading(name)}: second run higher`]]
      : [[`d:${name}:desc`, `highest ${heading(name)}`], [`d:${name}:asc`, `lowest ${heading(name)}`]]),
  ].filter(([name]) => pairs || !name.startsWith("spread"));
  if (!pairs) state.order = "id:asc";
  const sortOf = (order) => [{ column: order.slice(0, order.lastIndexOf(":")), dir: order.slice(order.lastIndexOf(":") + 1) }];

  const answersOf = (row) => runs.map((_, run) => data.answers[state.seed][run][row] ?? "");
  let wanted = "";
  const found = (row) => !wanted || row.prompt.toLowerCase().includes(wanted) || answersOf(row.id).some((answer) => answer.toLowerCase().includes(wanted));
  const TESTS = { a: (one) => one === 1, b: (one) => one === -1, tie: (one) => one === 0, none: (one) => one === null };
  const inScope = (row) => found(row) && (!state.result || TESTS[state.result](row[`v:${state.by}`]));
  const fits = (row) => inScope(row) && (!state.split || splits(row));

  function readHash() {
    const hash = Page.hash();
    const at = (list, name, other) => (list.indexOf(name) < 0 ? other : list.indexOf(name));
    state.q = hash.get("q") ?? "";
    state.seed = at(seeds, hash.get("seed"), 0);
    if (pairs) {
      state.a = at(runs, hash.get("a"), 0);
      state.b = at(runs, hash.get("b"), state.a === 1 ? 0 : 1);
      if (state.a === state.b) state.b = state.a ? 0 : 1;
    }
    state.by = criteria.some(({ name }) => name === hash.get("by")) ? hash.get("by") : HOLISTIC;
    state.result = RESULTS.some(([name]) => name === hash.get("result")) ? hash.get("result") : "";
    state.order = ORDERS.some(([name]) => name === hash.get("order")) ? hash.get("order") : ORDERS[0][0];
    state.split = pairs && hash.get("split") === "yes";
    const row = Number(hash.get("row") ?? NaN) - 1;
    state.row = Number.isInteger(row) && row >= 0 && row < prompts.length ? row : null;
    return hash.has("row") && state.row === null ? "The prompt of this link is not on this page. " : "";
  }

  let view = null;
  let ordered = state.order;
  const compared = () => `${state.seed}/${state.a}/${state.b}`;
  let drawn = "";
  function apply(message = "") {
    wanted = state.q.trim().toLowerCase();
    fill();
    if (byId("search").value !== state.q) byId("search").value = state.q;
    for (const [id, key] of [["seed", "seed"], ["run-a", "a"], ["run-b", "b"], ["by", "by"], ["result", "result"], ["order", "order"]]) byId(id).value = state[key];
    const chip = byId("split-verdicts");
    chip.setAttribute("aria-pressed", state.split);
    const scope = rows.filter(inScope);
    chip.lastElementChild.textContent = pairs ? scope.filter(splits).length : "";
    const count = state.split ? scope.filter(fits).length : scope.length;
    byId("status").textContent = `${message}${count.toLocaleString("en")} of ${prompts.length.toLocaleString("en")} prompts`;
    if (view) {
      if (ordered !== state.order) view.tabulator.setSort(sortOf(state.order));
      ordered = state.order;
      // Tabulator keeps the cells of rows that were once seen: other runs need new ones
      if (drawn === compared()) view.tabulator.setFilter(fits);
      else view.tabulator.replaceData(rows).then(() => view.choose(state.row, true));
      drawn = compared();
      view.choose(state.row, true);
    }
    draw();
    write();
  }
  /** The address stays that of a section until something is chosen. */
  const write = () => {
    const now = Page.hashOf(entries(state.row));
    if (now !== untouched || Page.hash().has("row")) Page.setHash(now);
  };
  const untouched = Page.hashOf(entries(null));
  const change = (values) => {
    Object.assign(state, values);
    apply();
  };

  function draw() {
    const row = state.row;
    if (row === null) return;
    const first = pairs ? [state.a, state.b] : [0];
    const others = runs.map((_, run) => run).filter((run) => !first.includes(run));
    const won = verdict(state.by, row);
    byId("details").replaceChildren(
      el("h3", {}, `Prompt ${row + 1} `, el("a", { href: linkTo(row), id: "row-link" }, "link")),
      el("p", { class: "text", dir: "auto" }, prompts[row] || el("em", {}, "(empty)")),
      pairs ? el("p", { class: "note" }, criteria.map(({ name, title }) => `${heading(title)}: ${winner(verdict(name, row))}`).join(" · ")) : "",
      el("div", { class: "cards", id: "both" }, ...first.map((run) => card(run, row, won !== null && won !== 0 && run === (won > 0 ? state.a : state.b)))),
      others.length ? el("details", {}, el("summary", {}, `Answers of the other ${others.length === 1 ? "run" : `${others.length} runs`}`), el("div", { class: "cards" }, ...others.map((run) => card(run, row, false)))) : "",
    );
  }

  function card(run, row, wins) {
    const answer = data.answers[state.seed][run][row];
    return el("article", { class: wins ? "winner" : null }, el("h3", {}, runs[run], wins ? el("span", { class: "mark" }, `wins by ${heading(state.by)}`) : null),
      el("p", { class: "text", dir: "auto" }, answer && answer.trim() ? answer : el("em", {}, answer === null ? "(none)" : "(empty)")),
      el("dl", {}, ...metrics.map((metric) => el("div", {}, el("dt", {}, heading(metric)), el("dd", {}, number(value(metric, run, row)))))));
  }

  const options = (id, list) => byId(id).append(...list.map(([key, name]) => el("option", { value: key }, name)));
  options("seed", seeds.map((name, at) => [at, name]));
  options("run-a", runs.map((name, at) => [at, name]));
  options("run-b", runs.map((name, at) => [at, name]));
  options("by", criteria.map(({ name, title }) => [name, heading(title)]));
  options("result", RESULTS);
  options("order", ORDERS);
  byId("seed-label").hidden = seeds.length < 2;
  for (const node of document.querySelectorAll(".pair")) node.hidden = !pairs;
  byId("search").addEventListener("input", Page.later(() => change({ q: byId("search").value })));
  byId("seed").addEventListener("change", (event) => change({ seed: Number(event.target.value) }));
  // the two runs change places rather than be the same
  byId("run-a").addEventListener("change", (event) => change({ a: Number(event.target.value), b: Number(event.target.value) === state.b ? state.a : state.b }));
  byId("run-b").addEventListener("change", (event) => change({ b: Number(event.target.value), a: Number(event.target.value) === state.a ? state.b : state.a }));
  for (const key of ["by", "result", "order"]) byId(key).addEventListener("change", (event) => change({ [key]: event.target.value }));
  byId("split-verdicts").addEventListener("click", () => change({ split: !state.split }));
  const isOurs = () => !location.hash || location.hash.includes("=");
  addEventListener("hashchange", () => {
    if (!isOurs()) return; // a section of the page
    const before = state.row;
    apply(readHash());
    if (state.row !== null) byId("details").scrollIntoView({ block: before === state.row ? "nearest" : "start" });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      byId("search").focus();
    }
    if (event.key === "Escape" && event.target.closest("#details, #search")) byId("table").focus();
  });

  const message = isOurs() ? readHash() : "";
  wanted = state.q.trim().toLowerCase();
  ordered = state.order;
  fill();
  const table = Page.table(byId("table"), {
    rows, columns, filter: fits, sort: sortOf(state.order), height: "22rem", empty: "No prompt fits.",
    onChoose: (row, how) => {
      state.row = row.id;
      draw();
      write();
      if (how === "pointer" && innerWidth < 600) byId("details").scrollIntoView();
    },
    onEnter: () => byId("details").focus(),
  });
  apply(message);
  table.ready.then(() => {
    view = table;
    drawn = compared();
    view.choose(state.row, true);
    document.body.dataset.ready = "yes";
    if (state.row !== null && Page.hash().has("row")) byId("details").scrollIntoView();
  });
})();

"use strict";
// The page of rollouts. Every text of the data goes in as a text node.
(() => {
  const { el, number, signed, excerpt } = Page;
  const data = Page.data();
  const { columns, groups, limits, strengths, runs, prompts } = data;
  const byId = (id) => document.getElementById(id);
  const count = columns.run.length;
  const DASHES = ["", "7 3", "7 2 2 2", "2 3", "7 2 2 2 2 2", "10 4"];
  const FIRST_CURVES = 6;

  // --- rows -------------------------------------------------------------------------------------------------------
  const SCALARS = "run step split sample gate reward holistic_raw holistic kl length changed repeated same holistic_up holistic_down paid_up".split(" ");
  // a task's metric with the name and the values of an aspect is shown once
  for (const [name, values] of Object.entries(groups.metrics)) {
    const aspect = groups.aspects[name];
    if (aspect && values.every((value, id) => value === null || value === aspect[id])) delete groups.metrics[name];
  }
  const named = Object.entries(groups).flatMap(([group, columns]) => Object.keys(columns).map((name) => [group, name]));
  const field = (group, name) => `${group}:${name}`;
  const rows = Array.from({ length: count }, (_, id) => {
    const row = { id };
    for (const key of SCALARS) row[key] = columns[key][id];
    for (const [group, name] of named) row[field(group, name)] = groups[group][name][id];
    row.prompt = prompts[columns.prompt[id]].text;
    row.answer = columns.answer[id];
    return row;
  });
  const promptId = (id) => prompts[columns.prompt[id]].id;
  const lowered = new Array(count);
  const searchable = (id) => (lowered[id] ??= `${rows[id].prompt}\n${rows[id].answer}`.toLowerCase());
  const places = new Map(); // run, split, prompt, sample -> ids by rising step
  const placeOf = (id, run = rows[id].run) => JSON.stringify([run, rows[id].split, promptId(id), rows[id].sample]);
  for (const row of rows) {
    const key = placeOf(row.id);
    if (places.has(key)) places.get(key).push(row.id);
    else places.set(key, [row.id]);
  }
  for (const ids of places.values()) ids.sort((a, b) => rows[a].step - rows[b].step);
  const steps = [...new Set(columns.step)].sort((a, b) => a - b);
  const rowName = (id) => [runs[rows[id].run].name, rows[id].split, promptId(id), rows[id].step, rows[id].sample]
    .map((part) => encodeURIComponent(String(part).toWellFormed())).join("/"); // half a surrogate pair has no address
  let rowIds = null; // name -> id, made when a link asks
  const findRow = (name) => (rowIds ??= new Map(rows.map((row) => [rowName(row.id), row.id]))).get(name);

  const FILTERS = {
    closed: ["gate closed", "the gate is closed, or less than half open", (row) => row.gate === false || (typeof row.gate === "number" && row.gate < 0.5)],
    up: ["holistic up, an aspect down", `since the start, both by ${limits.apart} standard deviations of the run or more`, (row) => row.holistic_up >= limits.apart],
    down: ["an aspect up, holistic down", `since the start, both by ${limits.apart} standard deviations of the run or more`, (row) => row.holistic_down >= limits.apart],
    paid: ["reward up, holistic down", `since the start, both by ${limits.apart} standard deviations of the run or more`, (row) => row.paid_up >= limits.apart],
    repeated: ["repeated text", `${limits.repeated * 100}% or more of its runs of three tokens came before in the answer`, (row) => row.repeated >= limits.repeated],
    same: ["same answer elsewhere", "another prompt of this step has the same answer", (row) => row.same > 0],
    empty: ["empty", "an answer without text", (row) => !row.answer.trim()],
  };

  const state = { step: steps.at(-1), all: false, split: "", run: "", q: "", show: new Set(), order: "", row: null };

  // --- columns of the table -------------------------------------------------------------------------------------------
  const numeric = (title, key, responsive, extra = {}) => ({
    title, field: key, responsive, hozAlign: "right", width: 78, formatter: (cell) => number(cell.getValue()), ...extra,
  });
  const TITLES = {
    reward: "reward", holistic: "h", holistic_raw: "h raw", kl: "KL", length: "tokens", changed: "changed", repeated: "repeated",
    same: "same elsewhere", holistic_up: "holistic up, aspect down", holistic_down: "aspect up, holistic down", paid_up: "reward up, holistic down",
  };
  const has = (key) => columns[key].some((value) => value !== null);
  const list = [
    { title: "step", field: "step", width: 60, responsive: 3, hozAlign: "right" },
    { title: "run", field: "run", width: 105, responsive: 2, visible: runs.length > 1, formatter: (cell) => Object.assign(el("span"), { textContent: runs[cell.getValue()].name }) },
    { title: "split", field: "split", width: 58, responsive: 9, visible: new Set(columns.split).size > 1 },
    { title: "prompt", field: "prompt", minWidth: 130, widthGrow: 2, responsive: 6, formatter: (cell) => text(excerpt(cell.getValue(), 160)) },
    { title: "answer", field: "answer", minWidth: 250, widthGrow: 4, responsive: 0, formatter: (cell) => answerCell(cell.getData().id) },
    ...[["reward", 1], ["holistic", 6], ["holistic_raw", 4]].filter(([key]) => has(key)).map(([key, responsive]) => numeric(TITLES[key], key, responsive)),
    ...Object.keys(groups.aspects).map((name, at) => numeric(name, field("aspects", name), 5 + at, { width: Math.min(130, Math.max(78, 24 + 9 * name.length)) })),
    { title: "gate", field: "gate", width: 66, responsive: 5, visible: has("gate"), formatter: (cell) => gateText(cell.getValue()) },
    ...["kl", "length", "changed"].filter(has).map((key, at) => numeric(TITLES[key], key, 8 + at)),
    ...["repeated", "same", "holistic_up", "holistic_down", "paid_up"].map((key) => numeric(TITLES[key], key, 20, { visible: false })),
    ...Object.keys(groups.metrics).map((name) => numeric(name, field("metrics", name), 12, { width: Math.min(130, Math.max(78, 24 + 9 * name.length)) })),
    { title: "link", field: "id", width: 46, responsive: 7, headerSort: false, formatter: (cell) => el("a", { href: linkTo(cell.getValue()), "aria-label": "Link to this row", title: "Link to this row" }, "#") },
  ];
  const text = (value) => el("div", { class: "clip", dir: "auto" }, value);
  const gateText = (value) => (value === true ? "open" : value === false ? "closed" : number(value));

  const ORDERS = [
    ["", "as in the file"], ["length:desc", "longest"], ["length:asc", "shortest"], ["changed:desc", "most changed since the start"],
    ["repeated:desc", "most repeated text"], ["same:desc", "same answer most often"], ["reward:desc", "highest reward"], ["reward:asc", "lowest reward"],
    ["holistic:desc", "highest h"], ["holistic:asc", "lowest h"], ["holistic_up:desc", "holistic up, aspect down: largest"], ["holistic_down:desc", "aspect up, holistic down: largest"],
    ["paid_up:desc", "reward up, holistic down: largest"], ["kl:desc", "largest KL"], ["step:asc", "step"],
    ...Object.keys(groups.aspects).flatMap((name) => [[`${field("aspects", name)}:desc`, `highest ${name}`], [`${field("aspects", name)}:asc`, `lowest ${name}`]]),
    ...Object.keys(groups.metrics).flatMap((name) => [[`${field("metrics", name)}:desc`, `highest ${name}`], [`${field("metrics", name)}:asc`, `lowest ${name}`]]),
  ].filter(([value]) => !value || value.includes(":", value.indexOf(":") + 1) || has(value.split(":")[0]));
  const sortOf = (order) => {
    const at = order.lastIndexOf(":");
    return at < 0 ? [{ column: "id", dir: "asc" }] : [{ column: order.slice(0, at), dir: order.slice(at + 1) }];
  };

  // --- tokens ---------------------------------------------------------------------------------------------------------
  const colour = (value) => (value > 0 ? "p" : "n") + (1 + strengths.filter((step) => Math.abs(value) >= step).length);

  /** The tokens of an answer as elements, those with a reward coloured; the whole text if it has no tokens. */
  function tokensOf(id, limit = Infinity) {
    const answer = columns.answer[id], lengths = columns.lengths[id], rewards = columns.rewards[id];
    if (!lengths || !rewards) return [answer.slice(0, 4 * limit)];
    const parts = [];
    let at = 0, plain = "";
    for (let number = 0; number < lengths.length && number < limit; number++) {
      const token = answer.slice(at, (at += lengths[number])), reward = rewards[number];
      if (!reward) {
        plain += token;
        continue;
      }
      const space = token.trim() ? token.slice(0, token.length - token.trimStart().length) : "";
      if (plain + space) parts.push(plain + space);
      plain = "";
      const kind = typeof reward === "number" ? `token ${reward > 0 ? "plus" : "minus"} ${colour(reward)}` : "token odd";
      const title = `token ${number + 1} of ${lengths.length}: ${typeof reward === "number" ? signed(reward) : reward}`;
      parts.push(el("span", { class: kind, title }, token.slice(space.length) || "◦"));
    }
    if (plain) parts.push(plain);
    return parts;
  }

  function answerCell(id) {
    if (!rows[id].answer.trim()) return el("div", { class: "clip" }, el("em", {}, "(empty)"), ...tokensOf(id, 20).filter((part) => part instanceof Node));
    return el("div", { class: "clip", dir: "auto" }, ...tokensOf(id, 90));
  }

  // --- state <-> address ----------------------------------------------------------------------------------------------
  const hashNow = (row = state.row === null ? "" : rowName(state.row)) => Page.hashOf({
    step: state.all ? "all" : String(state.step), split: state.split, run: state.run === "" ? "" : runs[state.run].name,
    q: state.q, show: [...state.show].join(","), order: state.order, row,
  });
  const linkTo = (id) => Page.hashOf({ row: rowName(id) });

  function readHash() {
    const found = Page.hash();
    const known = found.get("row") ? findRow(found.get("row")) : undefined;
    state.row = known ?? null;
    const step = found.get("step") === "all" ? "all" : Number(found.get("step") ?? NaN);
    state.all = step === "all";
    if (known !== undefined && !found.has("step")) state.step = rows[known].step;
    else if (steps.includes(step)) state.step = step;
    state.split = ["train", "dev"].includes(found.get("split")) ? found.get("split") : "";
    const run = runs.findIndex((one) => one.name === found.get("run"));
    state.run = run < 0 ? "" : run;
    state.q = found.get("q") ?? "";
    state.show = new Set((found.get("show") ?? "").split(",").filter((key) => key in FILTERS));
    state.order = ORDERS.some(([value]) => value === found.get("order")) ? found.get("order") : "";
    return found.get("row") && known === undefined ? "The row of this link is not on this page." : "";
  }

  // --- filtering ------------------------------------------------------------------------------------------------------
  let wanted = "";
  const inScope = (row) => (state.all || row.step === state.step) && (!state.split || row.split === state.split)
    && (state.run === "" || row.run === state.run) && (!wanted || searchable(row.id).includes(wanted));
  const fits = (row) => inScope(row) && [...state.show].every((key) => FILTERS[key][2](row));

  let view = null; // the table, once it is there
  function apply(message = "") {
    wanted = state.q.trim().toLowerCase();
    const at = steps.indexOf(state.step);
    byId("step").value = at;
    byId("step").disabled = state.all;
    byId("step").setAttribute("aria-valuetext", `step ${state.step}`);
    byId("step-now").textContent = state.all ? `${steps[0]} to ${steps.at(-1)}` : `${state.step}`;
    byId("all-steps").checked = state.all;
    byId("earlier").disabled = state.all || at === 0;
    byId("later").disabled = state.all || at === steps.length - 1;
    byId("split").value = state.split;
    byId("run").value = state.run;
    byId("order").value = state.order;
    if (byId("search").value !== state.q) byId("search").value = state.q;
    const scope = rows.filter(inScope);
    for (const [key, [name, , test]] of Object.entries(FILTERS)) {
      const button = byId(`filter-${key}`);
      button.setAttribute("aria-pressed", state.show.has(key));
      button.lastChild.textContent = ` ${scope.filter(test).length.toLocaleString("en")}`;
    }
    const found = state.show.size ? scope.filter(fits).length : scope.length;
    const narrowed = state.q || state.show.size || state.split || state.run !== "";
    byId("status").replaceChildren(`${message} ${found.toLocaleString("en")} of ${count.toLocaleString("en")} rows`.trim());
    if (narrowed) byId("status").append(" ", el("button", { type: "button", id: "clear", class: "quiet" }, "clear"));
    byId("clear")?.addEventListener("click", () => change({ q: "", show: new Set(), split: "", run: "" }));
    moveCursor();
    if (view) {
      view.tabulator.setFilter(fits);
      view.choose(state.row, true);
    }
    drawDetails();
    Page.setHash(hashNow());
  }

  function change(values) {
    const before = state.order;
    Object.assign(state, values);
    if (state.order !== before && view) view.tabulator.setSort(sortOf(state.order));
    apply();
  }

  /** The same prompt at the new step, if it was answered there. */
  function goTo(step) {
    const same = state.row === null ? undefined : places.get(placeOf(state.row)).find((id) => rows[id].step === step);
    change({ step, all: false, row: same ?? state.row });
  }
  const move = (by) => goTo(steps[Math.min(Math.max(steps.indexOf(state.step) + by, 0), steps.length - 1)]);

  // --- the chosen answer ------------------------------------------------------------------------------------------------
  function drawDetails() {
    const place = byId("details"), id = state.row;
    if (id === null) return place.replaceChildren(byId("hint") ?? hint);
    const row = rows[id], first = columns.first[id];
    const cards = [];
    runs.forEach((run, at) => {
      const ids = places.get(placeOf(id, at)) ?? [];
      const here = at === row.run ? id : ids.filter((one) => rows[one].step <= row.step).at(-1) ?? ids[0];
      if (here === undefined) cards.push(el("article", {}, el("h3", {}, run.name), el("p", { class: "note" }, "This run has no answer to this prompt.")));
      else cards.push(card(here, runs.length > 1 && at !== row.run && rows[here].step !== row.step ? "the nearest step that has it" : ""));
    });
    if (first !== null) cards.push(card(first, "first answer"));
    const own = places.get(placeOf(id));
    const links = el("p", { class: "steps" }, own.length > 1 ? "This prompt at step " : "This prompt was answered at one step.");
    if (own.length > 1) for (const one of own) links.append(el("a", { href: linkTo(one), "aria-current": one === id ? "true" : null }, String(rows[one].step)), " ");
    place.replaceChildren(
      el("h2", {}, `${row.split} prompt ${promptId(id)}`, " ", el("a", { href: linkTo(id), class: "quiet", id: "row-link" }, "link to this row")),
      el("div", { class: "text prompt", dir: "auto" }, row.prompt || el("em", {}, "(no prompt)")), links, el("div", { class: "cards" }, ...cards), legend(),
    );
  }
  const hint = byId("hint");

  function card(id, note) {
    const row = rows[id], base = columns.first[id] === null ? null : rows[columns.first[id]];
    const facts = [];
    const add = (name, key, show = number) => {
      const value = row[key];
      if (value === null || value === undefined) return;
      const before = base && typeof base[key] === "number" && typeof value === "number" && !["changed", "repeated"].includes(key) ? value - base[key] : null;
      facts.push(el("div", {}, el("dt", {}, name), el("dd", {}, show(value), !before ? null : el("small", {}, ` ${signed(before)}`))));
    };
    add("reward", "reward");
    add("h", "holistic");
    add("h raw", "holistic_raw");
    add("gate", "gate", gateText);
    for (const [group, name] of named) add(group === "paid" ? `paid: ${name}` : name, field(group, name));
    for (const key of ["kl", "length", "changed", "repeated"]) add(TITLES[key], key);
    const coloured = columns.rewards[id];
    const body = row.answer.trim() || coloured ? tokensOf(id) : [el("em", {}, "(empty)")];
    return el("article", { class: id === state.row ? "chosen" : null }, el("h3", {}, runs[row.run].name, `, step ${row.step}`, note ? el("span", { class: "mark" }, note) : null),
      el("div", { class: "text tokens", dir: "auto" }, ...(row.answer.trim() ? [] : [el("em", {}, "(empty) ")]), ...body),
      coloured ? largest(id) : el("p", { class: "note" }, "The file has no rewards of its tokens."), el("dl", {}, ...facts));
  }

  /** The rewards of an answer that matter most, for those who cannot hover. */
  function largest(id) {
    const rewards = columns.rewards[id], lengths = columns.lengths[id];
    const paid = rewards.map((value, at) => [value, at]).filter(([value]) => value);
    const times = new Map();
    for (const [value] of paid) times.set(value, (times.get(value) ?? 0) + 1);
    const usual = [...times].find(([, count]) => count > 2 && 2 * count > rewards.length)?.[0]; // said once
    const others = paid.filter(([value]) => value !== usual);
    const chosen = new Set([...others].sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 6).map(([, at]) => at));
    const line = el("p", { class: "note" }, paid.length ? `${paid.length} of ${rewards.length} tokens are paid` : "No token is paid.");
    if (usual !== undefined) line.append(others.length ? `, ${times.get(usual)} of them ${signed(usual)}` : `, each ${signed(usual)}`);
    const which = [others.length > chosen.size ? "the largest" : "", usual === undefined ? "" : "the others"].filter(Boolean).join(" of ");
    if (others.length) line.append(which ? `; ${which}: ` : ": ");
    let start = 0;
    lengths.forEach((length, at) => {
      if (chosen.has(at)) line.append(el("span", { class: "pay" }, el("q", { dir: "auto" }, columns.answer[id].slice(start, start + length) || "◦"), ` ${signed(rewards[at])}`), " ");
      start += length;
    });
    return line;
  }

  function legend() {
    const names = [`< ${strengths[0]}`, ...strengths.map((step) => `≥ ${step}`)];
    const swatches = (sign) => names.map((name, at) => el("span", { class: `token ${sign === "p" ? "plus" : "minus"} ${sign}${at + 1}` }, name));
    return el("p", { class: "note legend" }, "Reward of a token: + solid line ", ...swatches("p"), " − dotted line ", ...swatches("n"), " ◦ a token without text, such as the end");
  }

  // --- curves ---------------------------------------------------------------------------------------------------------------
  const WIDTH = 220, HEIGHT = 84;
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const cursors = [];
  const span = [steps[0], steps.at(-1)];
  for (const panel of data.curves) for (const line of panel.lines) for (const step of [...line.steps, ...line.dev_steps]) {
    span[0] = Math.min(span[0], step);
    span[1] = Math.max(span[1], step);
  }
  const x = (step) => 4 + ((step - span[0]) / (span[1] - span[0] || 1)) * (WIDTH - 8);

  function chart(panel) {
    const values = panel.lines.flatMap((line) => [...line.mean, ...line.dev]).filter((value) => value !== null);
    let [low, high] = panel.ends ?? [Math.min(...values), Math.max(...values)];
    if (!values.length) [low, high] = [0, 1];
    // a difference of rounding alone is no curve, as in alarm/training/plot.py
    if (high - low <= 1e-9 * Math.max(1, Math.abs(low), Math.abs(high))) [low, high] = [low - 1, low + 1];
    const y = (value) => HEIGHT - 5 - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (HEIGHT - 10);
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    panel.lines.forEach((line, run) => {
      const path = (at, values) => {
        let found = "", pen = "M";
        values.forEach((value, index) => {
          if (value === null) return (pen = "M");
          found += `${pen}${x(at[index]).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = "L";
        });
        return found;
      };
      const style = { class: `run${run}`, fill: "none", "vector-effect": "non-scaling-stroke" };
      if (line.steps.length) {
        picture.append(svg("path", { ...style, d: path(line.steps, line.values), "stroke-width": 0.7, opacity: 0.35 }));
        picture.append(svg("path", { ...style, d: path(line.steps, line.mean), "stroke-width": 1.8, "stroke-dasharray": DASHES[run] }));
      }
      line.dev.forEach((value, index) => {
        if (value !== null) picture.append(svg("circle", { class: `run${run} dev`, cx: x(line.dev_steps[index]), cy: y(value), r: 2.6 }));
      });
    });
    const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: 0, x2: 0, "vector-effect": "non-scaling-stroke" });
    picture.append(cursor);
    const now = el("span", { class: "now" });
    cursors.push({ panel, cursor, now, range: high - low });
    const figure = el("figure", { class: "curve", title: "Click to go to a step" }, el("figcaption", {}, el("b", { title: panel.title }, panel.title), now), picture,
      el("small", {}, `${number(low)} to ${number(high)}`));
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const step = span[0] + (((event.clientX - box.left) / box.width) * WIDTH - 4) / (WIDTH - 8) * (span[1] - span[0]);
      goTo(steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best)));
    });
    return figure;
  }

  function moveCursor() {
    for (const { panel, cursor, now, range } of cursors) {
      cursor.setAttribute("x1", x(state.step));
      cursor.setAttribute("x2", x(state.step));
      cursor.setAttribute("visibility", state.all ? "hidden" : "visible");
      const at = (line) => {
        let found = null;
        line.steps.forEach((step, index) => { if (step <= state.step) found = line.mean[index] ?? found; });
        if (!line.steps.length) line.dev_steps.forEach((step, index) => { if (step <= state.step) found = line.dev[index] ?? found; });
        return found === null ? "–" : number(Math.abs(found) < 1e-9 * range ? 0 : found); // a mean of 0 up to rounding
      };
      now.textContent = state.all ? "" : panel.lines.map(at).join(" / ");
    }
  }

  // --- start ----------------------------------------------------------------------------------------------------------------
  const facts = runs.map((run) => `${run.name}: ${run.rows.toLocaleString("en")} answers${run.has_log ? "" : " (no log.jsonl: the curves are means of the answers)"}`);
  byId("facts").append(...facts.flatMap((fact, at) => [at ? " · " : "", runs.length > 1 ? el("i", { class: `swatch run${at}` }) : "", fact]), ` · steps ${steps[0]} to ${steps.at(-1)}`);
  const flat = (panel) => new Set(panel.lines.flatMap((line) => [...line.values, ...line.dev])).size < 2;
  const panels = [...data.curves.filter((panel) => !flat(panel)), ...data.curves.filter(flat)];
  panels.forEach((panel, at) => byId(at < FIRST_CURVES ? "curves" : "curves-2").append(chart(panel)));
  byId("more-curves").hidden = data.curves.length <= FIRST_CURVES;
  byId("step").max = steps.length - 1;
  const options = (id, entries) => byId(id).append(...entries.map(([value, name]) => el("option", { value }, name)));
  options("split", [["", "all"], ...[...new Set(columns.split)].map((name) => [name, name])]);
  options("run", [["", "all"], ...runs.map((run, at) => [String(at), run.name])]);
  byId("run-label").hidden = runs.length < 2;
  options("order", ORDERS);
  for (const [key, [name, title]] of Object.entries(FILTERS)) {
    const button = el("button", { type: "button", id: `filter-${key}`, class: "chip", "aria-pressed": "false", title }, name, el("span", {}));
    button.addEventListener("click", () => {
      const show = new Set(state.show);
      if (!show.delete(key)) show.add(key);
      change({ show });
    });
    byId("filters").append(button);
  }
  byId("help-text").append(el("ul", {}, ...[
    "h is the normalised holistic score; with a baseline it is relative to other answers of its step, and “h raw” is not. Aspects are as in the log's columns. “paid” is the part of the payment after combination.",
    "“start” is the first answer to the same prompt. A prompt that was answered at one step alone is compared with the means of the run's first step.",
    "“changed”: the share of tokens that differ from the first answer, 0 to 1. “repeated”: the share of runs of three tokens that came before in the answer.",
    ...Object.values(FILTERS).map(([name, title]) => `Filter “${name}”: ${title}.`),
    "Curves: thin, every step; thick, a running mean; circles, the dev file. The value is that of the chosen step.",
    "Keys: / search; in the table up, down, page up, page down, home and end choose a row, left and right change the step, enter goes to the answer; escape goes back to the table.",
    "Numbers have five digits. A blank is a number that the file does not have.",
  ].map((line) => el("li", {}, line))));

  byId("step").addEventListener("input", (event) => goTo(steps[Number(event.target.value)]));
  byId("earlier").addEventListener("click", () => move(-1));
  byId("later").addEventListener("click", () => move(1));
  byId("all-steps").addEventListener("change", (event) => change({ all: event.target.checked }));
  byId("split").addEventListener("change", (event) => change({ split: event.target.value }));
  byId("run").addEventListener("change", (event) => change({ run: event.target.value === "" ? "" : Number(event.target.value) }));
  byId("order").addEventListener("change", (event) => change({ order: event.target.value }));
  byId("search").addEventListener("input", Page.later((event) => change({ q: byId("search").value })));
  addEventListener("hashchange", () => {
    const before = state.order, message = readHash();
    if (state.order !== before && view) view.tabulator.setSort(sortOf(state.order));
    apply(message);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      byId("search").focus();
    }
    if (event.key === "Escape" && event.target.closest("#details, #search")) byId("table").focus();
  });
  byId("table").addEventListener("keydown", (event) => {
    if (state.all || !["ArrowLeft", "ArrowRight"].includes(event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(event.key === "ArrowLeft" ? -1 : 1);
  });

  const message = readHash();
  wanted = state.q.trim().toLowerCase();
  view = Page.table(byId("table"), {
    rows, columns: list, filter: fits, sort: sortOf(state.order), height: "19rem", empty: "No row fits.",
    onChoose: (row, how) => {
      state.row = row.id;
      drawDetails();
      Page.setHash(hashNow());
      if (how === "pointer" && innerWidth < 600) byId("details").scrollIntoView();
    },
    onEnter: () => byId("details").focus(),
  });
  const table = view;
  view = null;
  apply(message);
  table.ready.then(() => {
    view = table;
    view.choose(state.row, true);
    document.body.dataset.ready = "yes";
    if (state.row !== null && Page.hash().has("row")) byId("details").scrollIntoView({ block: "nearest" });
  });
})();

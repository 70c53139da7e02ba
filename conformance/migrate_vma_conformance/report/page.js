"use strict";
(() => {
  const { cases, chains } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // ---- copying: the clipboard where the browser gives it to a file, else the old way
  const copied = (button, done) => {
    button.textContent = done ? "copied" : "not copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  const copyByHand = (text) => {
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const text = button.dataset.copy;
    const given = navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject(new Error("no clipboard"));
    given.then(() => copied(button, true), () => copied(button, copyByHand(text)));
  });
  if (!cases.length) return;

  // ---- one case: `place` of it among the cases, `now` the line where the reader stands (null: nowhere), `round` of the cycle
  const state = { place: 0, now: null, round: 1, whole: false };
  const view = () => cases[state.place][state.whole ? "whole" : "brief"];
  const NUMBER = 0, CPU = 1, TASK = 2, FUNCTION = 3, WORDS = 4, CHAIN = 5;
  let rows = [];

  function head(shown) {
    const row = make("div", "row head");
    row.append(make("span", "number", "step"));
    if (shown.together) row.append(make("span", "cell", shown.cpus.map(([cpu, tasks]) => `CPU ${cpu}: ${tasks}`).join(" · ")));
    else for (const [cpu, tasks] of shown.cpus) row.append(make("span", "cell", `CPU ${cpu}: ${tasks}`));
    return row;
  }

  function rule(kind, text) {
    return make("div", `rule ${kind}`, text);
  }

  function draw() {
    const one = cases[state.place], shown = view(), timeline = at("timeline");
    const columns = shown.together ? 1 : shown.cpus.length;
    timeline.style.setProperty("--columns", `repeat(${columns}, minmax(0, 1fr))`);
    const parts = [head(shown)];
    if (one.first) parts.push(make("div", "before", `steps 1-${one.first} build the first state`));
    const said = new Map();
    rows = shown.lines.map((line, place) => {
      const looping = shown.cycle !== null && place >= shown.cycle;
      if (place === shown.cycle) {
        said.clear();
        parts.push(rule("from", "↻ for ever, from here"));
      }
      const row = make("div", looping ? "row loop" : "row");
      const column = shown.together ? 0 : shown.cpus.findIndex(([cpu]) => cpu === line[CPU]);
      row.append(make("span", "number", line[NUMBER]));
      const cell = make("span", "cell");
      cell.style.gridColumn = String(column + 2);
      const several = shown.together || shown.cpus[column][1].includes(",");
      const who = shown.together ? `CPU ${line[CPU]} ${line[TASK]}` : line[TASK];
      const before = said.get(column) || ["", ""];
      const marks = several && before[0] !== who ? [`[${who}]`] : [];
      if (line[FUNCTION] && (before[0] !== who || before[1] !== line[FUNCTION])) marks.push(`${line[FUNCTION]}()`);
      if (marks.length) cell.append(make("span", "function", marks.join(" ")));
      said.set(column, [who, line[FUNCTION]]);
      cell.append(make("span", "words", line[WORDS]));
      row.append(cell);
      row.addEventListener("click", () => { state.round = 1; go(place); });
      parts.push(row);
      return row;
    });
    if (shown.cycle !== null) {
      const back = shown.lines[shown.cycle][NUMBER];
      parts.push(rule("back", `↺ back to step ${back}${one.ever ? `: ${one.ever}` : ""}`));
    }
    timeline.replaceChildren(...parts);
    mark();
  }

  function describe() {
    const now = at("now"), shown = view();
    if (state.now === null) {
      now.replaceChildren(make("p", "quiet", "Step with the arrow keys, or click a step: where it was made is shown here."));
      return;
    }
    const line = shown.lines[state.now];
    const looping = shown.cycle !== null && state.now >= shown.cycle;
    const where = `step ${line[NUMBER]} · CPU ${line[CPU]} · ${line[TASK]}${looping ? ` · round ${state.round}` : ""}`;
    const chain = make("ol");
    for (const name of chains[line[CHAIN]]) chain.append(make("li", "", `${name}()`));
    now.replaceChildren(make("p", "quiet", where), make("p", "words", line[WORDS]), chain);
  }

  function mark() {
    rows.forEach((row, place) => {
      row.classList.toggle("now", place === state.now);
      row.classList.toggle("later", state.now !== null && place > state.now);
    });
    describe();
  }

  function go(place) {
    state.now = place;
    mark();
    if (place === null) return;
    const row = rows[place], timeline = at("timeline");
    const top = row.offsetTop - timeline.querySelector(".head").offsetHeight - 8;
    const bottom = row.offsetTop + row.offsetHeight + 8;
    if (top < timeline.scrollTop) timeline.scrollTop = top;
    else if (bottom > timeline.scrollTop + timeline.clientHeight) timeline.scrollTop = bottom - timeline.clientHeight;
  }

  // ---- stepping: a cycle has no last step
  function after(place) {
    const { lines, cycle } = view();
    if (place === null) return 0;
    if (place + 1 < lines.length) return place + 1;
    if (cycle === null) return place;
    state.round += 1;
    return cycle;
  }

  function before(place) {
    const { lines, cycle } = view();
    if (place === null) return lines.length - 1;
    if (place === cycle && state.round > 1) {
      state.round -= 1;
      return lines.length - 1;
    }
    return Math.max(place - 1, 0);
  }

  function toAnotherTask(move) {
    const { lines } = view();
    let place = move(state.now);
    if (state.now !== null) {
      const task = lines[state.now][TASK];
      for (let left = lines.length; left > 0 && lines[place][TASK] === task; left -= 1) place = move(place);
    }
    go(place);
  }

  function name(place) {
    const one = cases[place];
    return `#${encodeURIComponent(one.clause)}@${encodeURIComponent(one.generation)}`;
  }

  function show(place) {
    Object.assign(state, { place, now: null, round: 1 });
    const one = cases[place];
    at("choose").value = String(place);
    at("title").textContent = `${one.title} `;
    at("title").append(make("span", "quiet", `${one.level}, on ${one.generation}`));
    at("facts").replaceChildren(...one.facts.flatMap(([label, text]) => [make("dt", "", label), make("dd", "", text)]));
    at("command").textContent = one.command;
    at("copy").dataset.copy = one.command;
    for (const link of document.querySelectorAll("a[data-case]")) {
      if (Number(link.dataset.case) === place) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    history.replaceState(null, "", name(place));
    draw();
    at("timeline").scrollTop = 0;
  }

  function setWhole(whole) {
    Object.assign(state, { whole, now: null, round: 1 });
    at("whole").checked = whole;
    draw();
  }

  const keys = {
    ArrowDown: () => go(after(state.now)),
    j: () => go(after(state.now)),
    ArrowUp: () => go(before(state.now)),
    k: () => go(before(state.now)),
    ArrowRight: () => toAnotherTask(after),
    ArrowLeft: () => toAnotherTask(before),
    Home: () => { state.round = 1; go(0); },
    End: () => go(view().lines.length - 1),
    n: () => show((state.place + 1) % cases.length),
    p: () => show((state.place + cases.length - 1) % cases.length),
    a: () => setWhole(!state.whole),
    Escape: () => { state.round = 1; go(null); },
  };

  // Arrow keys scroll the page until the reader has come to the timeline, by a click, by Tab, or by a link of the table.
  let reading = false;
  document.addEventListener("focusin", (event) => { reading = at("viewer").contains(event.target); });
  document.addEventListener("keydown", (event) => {
    const moves = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    if (event.target.closest("select") || (moves && !reading)) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-case]");
    if (!link) return;
    event.preventDefault();
    show(Number(link.dataset.case));
    at("viewer").scrollIntoView({ block: "start" });
    at("timeline").focus({ preventScroll: true });
  });
  at("choose").addEventListener("change", (event) => show(Number(event.target.value)));
  at("whole").addEventListener("change", (event) => setWhole(event.target.checked));

  const wanted = cases.findIndex((_, place) => name(place) === location.hash);
  show(Math.max(wanted, 0));
  if (wanted >= 0) {
    at("viewer").scrollIntoView({ block: "start" });
    at("timeline").focus({ preventScroll: true });
  }
})();

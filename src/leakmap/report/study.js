"use strict";
const { axes, audits, top: TOP, deep: DEEP } = JSON.parse(document.getElementById("data").textContent);
const area = document.getElementById("tiles"), panel = document.getElementById("panel"), controls = document.getElementById("controls");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* The exact interval of a share, by the incomplete beta function (continued fraction) and bisection. */
function logGamma(x) {
  let shift = 0;
  for (; x < 12; x++) shift -= Math.log(x);
  const y = 1 / (x * x);
  return shift + (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y / 1680))) / x;
}
function incompleteBeta(x, a, b) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
  const tiny = 1e-300;
  let c = 1, d = 1 / Math.max(Math.abs(1 - (a + b) * x / (a + 1)), tiny) * Math.sign(1 - (a + b) * x / (a + 1) || 1), sum = d;
  for (let m = 1; m < 500; m++) {
    let change = 1;
    for (const term of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 / (1 + term * d || tiny);
      c = 1 + term / c || tiny;
      change = c * d;
      sum *= change;
    }
    if (Math.abs(change - 1) < 1e-12) break;
  }
  return front * sum;
}
function quantile(p, a, b) {
  let low = 0, high = 1;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (incompleteBeta(middle, a, b) < p) low = middle; else high = middle;
  }
  return (low + high) / 2;
}
/* Clients are the cases: the share as hits of them, rounded outwards to whole ones. */
function shareInterval(hits, pictures, clients) {
  const low = Math.floor(hits * clients / pictures), high = Math.ceil(hits * clients / pictures);
  return [low === 0 ? 0 : quantile(0.025, low, clients - low + 1), high === clients ? 1 : quantile(0.975, high + 1, clients - high)];
}

function pooled(indices) {
  const of = indices.map(i => audits[i]), sum = key => of.reduce((total, audit) => total + audit[key], 0);
  const n = sum("n"), hits = sum("hits"), chance = n ? of.reduce((total, a) => total + (a.chance || 0) * a.n, 0) / n : 1;
  const times = n ? hits / n / chance : 0;
  return {
    indices, n, hits, chance, times, clients: new Set(of.flatMap(a => a.clients.map(client => `${a.seed}/${client}`))).size,
    depth: Math.min(1, Math.max(0, Math.log(times || 1e-9) / Math.log(TOP))),
    inconclusive: 2 * of.filter(a => a.level === "inconclusive").length >= of.length,
    above: of.some(a => a.above),
  };
}
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)}%`;

/* The map. An axis is in the rows, in the columns, pooled, or held at one level. */
const roles = axes.map(axis => axis.role);
function shown() {
  const rows = [], columns = [], held = [];
  roles.forEach((role, i) => role === "rows" ? rows.push(i) : role === "columns" ? columns.push(i) : role === "pooled" || held.push([i, +role]));
  const tiles = new Map(), rowKeys = new Map(), columnKeys = new Map();
  audits.forEach((audit, i) => {
    if (held.some(([axis, level]) => audit.at[axis] !== level)) return;
    const row = rows.map(axis => audit.at[axis]), column = columns.map(axis => audit.at[axis]);
    rowKeys.set(row.join(), row);
    columnKeys.set(column.join(), column);
    const key = `${row.join()}|${column.join()}`;
    if (!tiles.has(key)) tiles.set(key, []);
    tiles.get(key).push(i);
  });
  const order = (a, b) => a.map((level, i) => level - b[i]).find(difference => difference) || 0;
  return { rows, columns, tiles, rowKeys: [...rowKeys.values()].sort(order), columnKeys: [...columnKeys.values()].sort(order) };
}
const spanOf = (keys, at, depth) => {
  const same = i => keys[i] && keys[i].slice(0, depth + 1).join() === keys[at].slice(0, depth + 1).join();
  if (at && same(at - 1)) return 0;
  let end = at + 1;
  while (same(end)) end++;
  return end - at;
};
function draw() {
  const { rows, columns, tiles, rowKeys, columnKeys } = shown();
  const table = make("table", { class: "map" }), head = make("thead"), body = make("tbody");
  for (let depth = 0; depth < Math.max(columns.length, 1); depth++) {
    const line = make("tr"), last = depth === Math.max(columns.length, 1) - 1;
    if (columns.length) line.append(make("th", { class: "axis", colspan: Math.max(rows.length, 1), style: "text-align: right" }, axes[columns[depth]].short));
    else line.append(make("th", { class: "axis", colspan: Math.max(rows.length, 1) }));
    columnKeys.forEach((key, i) => {
      const span = columns.length ? spanOf(columnKeys, i, depth) : 1;
      if (span) line.append(make("th", { colspan: span, scope: last ? "col" : "colgroup" }, columns.length ? axes[columns[depth]].levels[key[depth]] : "all"));
    });
    head.append(line);
  }
  if (rows.length) head.append(make("tr", {}, ...rows.map(axis => make("th", { class: "axis", title: axes[axis].name, style: "text-align: left" }, axes[axis].short))));
  rowKeys.forEach((key, i) => {
    const line = make("tr");
    if (!rows.length) line.append(make("th", {}, "all"));
    rows.forEach((axis, depth) => {
      const span = spanOf(rowKeys, i, depth);
      if (span) line.append(make("th", { rowspan: span, scope: "row" }, axes[axis].levels[key[depth]]));
    });
    columnKeys.forEach(column => {
      const found = tiles.get(`${key.join()}|${column.join()}`);
      const named = [...rows.map((axis, d) => [axis, key[d]]), ...columns.map((axis, d) => [axis, column[d]])];
      line.append(found ? make("td", {}, button(pooled(found), named)) : make("td", { class: "empty", title: "not in the study" }, "·"));
    });
    body.append(line);
  });
  table.append(head, body);
  area.replaceChildren(table);
  const first = table.querySelector(".tile");
  if (first) first.tabIndex = 0;
  stick(table);
}
function stick(table) {
  const heads = [...table.querySelectorAll("tbody th, thead th.axis")], left = table.getBoundingClientRect().left;
  const firstTile = table.querySelector("td");
  if (!firstTile || firstTile.getBoundingClientRect().left - left > area.clientWidth * 0.55) return;
  const places = heads.map(head => head.getBoundingClientRect().left - left);
  heads.forEach((head, i) => { head.classList.add("stuck"); head.style.left = `${places[i]}px`; });
}
function button(tile, named) {
  const where = named.map(([axis, level]) => `${axes[axis].short} ${axes[axis].levels[level]}`).join(", ") || "all cells";
  const classes = ["tile", tile.n ? "" : "none", tile.depth > DEEP ? "deep" : "", tile.inconclusive ? "inconclusive" : "", tile.n && !tile.above ? "floored" : ""];
  const says = `${where}: ${tile.n ? `${tile.hits} of ${tile.n} ranked first, ${tile.times.toPrecision(2)} times chance` : "no client finished"}`
    + `${tile.inconclusive ? ", inconclusive" : ""}${tile.n && !tile.above ? ", not above its floor" : ""}`;
  const element = make("button", { class: classes.filter(Boolean).join(" "), tabindex: -1, title: says, type: "button" },
    make("b", {}, tile.n ? percent(tile.hits / tile.n) : "–"), " ", make("small", {}, tile.n ? `${tile.hits} of ${tile.n}` : "no result"), make("span", { class: "unseen" }, ` ${says}`));
  if (tile.n) {
    const step = Math.min(3, Math.floor(tile.depth * 4));
    element.style.backgroundColor = `color-mix(in oklab, var(--r${step + 1}) ${100 * (tile.depth * 4 - step)}%, var(--r${step}))`;
  }
  element.addEventListener("click", () => open(tile, where, named.map(([axis]) => axis)));
  return element;
}
area.addEventListener("keydown", event => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const cell = event.target.closest("td");
  if (!step || !cell) return;
  event.preventDefault();
  const grid = [...area.querySelectorAll("tbody tr")].map(line => [...line.querySelectorAll("td")]);
  let y = grid.findIndex(line => line.includes(cell)), x = grid[y].indexOf(cell), next;
  do {
    y += step[0];
    x += step[1];
    next = grid[y] && grid[y][x];
  } while (next && !next.querySelector("button"));
  if (!next) return;
  event.target.tabIndex = -1;
  next.querySelector("button").tabIndex = 0;
  next.querySelector("button").focus();
});

/* The panel of a tile. */
function table({ head, rows }) {
  return make("div", { class: "scroll", tabindex: 0 }, make("table", {},
    make("tr", {}, ...head.map(text => make("th", { scope: "col" }, text))),
    ...rows.map(row => make("tr", {}, ...row.map((text, i) => make("td", i ? { class: "n" } : {}, text))))));
}
function gallery(index) {
  const found = audits[index].gallery;
  if (!found) return make("p", { class: "soft" }, "No pictures are kept of this audit.");
  const columns = found.names.length, rows = found.clients.length, side = found.side;
  const address = `url("data:image/webp;base64,${document.getElementById(`pictures-${index}`).textContent}")`;
  const shot = (i, j) => {
    const element = make("span", { class: "shot", role: "img", "aria-label": `client ${found.clients[i]}, ${found.names[j]}` });
    Object.assign(element.style, {
      width: `${side}px`, height: `${side}px`, backgroundImage: address, backgroundSize: `${side * columns}px ${side * rows}px`,
      backgroundPosition: `${-side * j}px ${-side * i}px`,
    });
    return element;
  };
  return make("div", {},
    make("p", { class: "soft" }, `A reconstruction is evidence only if it beats the pictures to its right, which were made without this update. ${found.told}`),
    make("div", { class: "scroll", tabindex: 0 }, make("table", { class: "gallery" },
      make("tr", {}, make("th", { scope: "col" }, "client"), ...found.names.map(name => make("th", { scope: "col" }, name)), make("th", { scope: "col" }, "scores")),
      ...found.clients.map((client, i) => make("tr", {}, make("td", { class: "soft" }, String(client)),
        ...found.names.map((_, j) => make("td", {}, found.missing.includes(i * columns + j) ? "no reconstruction" : shot(i, j))), make("td", { class: "soft" }, found.captions[i]))))));
}
function audit(index, named, opened) {
  const of = audits[index], rest = axes.map((axis, i) => named.includes(i) ? "" : `${axis.short} ${axis.levels[of.at[i]]}`).filter(Boolean);
  const box = make("details", {}, make("summary", {}, make("span", { class: `level ${of.level}` }, of.level.replace("_", " ")),
    `${of.few ? " too few clients," : ""} ${rest.join(", ") || "this audit"}: ${of.n ? `${of.hits} of ${of.n} ranked first` : "no result"}`));
  let filled = false;
  const fill = () => {
    if (filled || !box.open) return;
    filled = true;
    box.append(make("div", { class: `verdict ${of.level}` }, make("p", {}, make("strong", {}, of.headline)),
      ...of.said.map(sentence => make("p", {}, sentence)),
      make("ul", {}, ...of.reasons.map(reason => make("li", {}, reason)))), ...of.tables.map(table),
      ...of.facts.map(fact => make("p", { class: "soft" }, fact)), make("pre", {}, of.command), gallery(index));
  };
  box.addEventListener("toggle", fill);
  box.open = opened;
  fill();
  return box;
}
function open(tile, where, named) {
  const close = make("button", { class: "close", type: "button" }, "Close");
  close.addEventListener("click", () => panel.close());
  const parts = [make("header", {}, make("h2", { id: "panel-title" }, where), close)];
  if (tile.n) {
    const [low, high] = shareInterval(tile.hits, tile.n, tile.clients);
    parts.push(make("p", {}, make("span", { class: "big" }, percent(tile.hits / tile.n)), ` ranked first: ${tile.hits} of ${tile.n}, 95 % interval ${percent(low, 1)} to ${percent(high, 1)}; chance ${percent(tile.chance, 1)}, so ${tile.times.toPrecision(2)} times chance.`));
  } else parts.push(make("p", {}, "No client finished."));
  if (tile.indices.length > 1) parts.push(make("p", { class: "soft" }, `${tile.indices.length} audits are pooled here; a client that is in several counts once in the interval.`));
  parts.push(...tile.indices.map((index, i) => audit(index, named, i === 0)));
  panel.replaceChildren(...parts);
  panel.showModal();
  panel.scrollTop = 0;
}
panel.addEventListener("click", event => { if (event.target === panel && event.clientX < panel.getBoundingClientRect().left) panel.close(); });

axes.forEach((axis, i) => {
  const options = [["rows", "in rows"], ["columns", "in columns"], ["pooled", "pooled"], ...axis.levels.map((level, at) => [String(at), `only ${level}`])];
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  select.value = roles[i];
  select.addEventListener("change", () => { roles[i] = select.value; draw(); });
  controls.append(make("label", { title: axis.name }, axis.short, select));
});
controls.hidden = !axes.length;
document.querySelectorAll(".live").forEach(element => { element.hidden = false; });
draw();

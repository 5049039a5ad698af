// What the page does: themes, tables that sort and filter, charts, a page for each run.
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const page = read("page");
const packed = read("packed");
const overview = document.getElementById("overview");
const runView = document.getElementById("run");

// Themes

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const choice = document.getElementById("theme");
const kept = { get: () => { try { return localStorage.getItem("dinocache-theme"); } catch { return null; } },
               set: (value) => { try { localStorage.setItem("dinocache-theme", value); } catch { /* from a file */ } } };
const isDark = () => (choice.value === "system" ? system.matches : choice.value === "dark");

function applyTheme() {
  root.classList.toggle("dark", isDark());
  for (const place of document.querySelectorAll(".chart.drawn")) draw(place);
}

choice.value = kept.get() || "system";
choice.addEventListener("change", () => { kept.set(choice.value); applyTheme(); });
system.addEventListener("change", applyTheme);
root.classList.toggle("dark", isDark());

// Charts

const figures = new Map(page.figures.map((figure, place) => [`f${place}`, figure]));

async function draw(place) {
  const figure = figures.get(place.dataset.figure);
  if (!figure) return;
  const spec = { ...page.specifications[figure.specification], datasets: { rows: figure.rows } };
  const by = spec.usermeta?.stepped;
  if (by) spec.height = spec.height.step * new Set(figure.rows.map((row) => row[by])).size;
  spec.description = `${figure.title}. ${figure.caption}`;
  place.classList.add("drawn");
  const { view } = await vegaEmbed(place, spec, {
    renderer: "svg",
    config: page.themes[isDark() ? "dark" : "light"],
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    downloadFileName: figure.title.replace(/[^\w.-]+/g, "-"),
    tooltip: { theme: isDark() ? "dark" : "light" },
  });
  place.querySelector("summary")?.setAttribute("aria-label", `Save the chart: ${figure.title}`);
  place.dataset.marks = view.data("rows").length;
}

// Drawn once they come into view: a page of 200 runs opens at once.
const watcher = new IntersectionObserver((seen) => {
  for (const entry of seen) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "300px" });
const watch = (within) => within.querySelectorAll(".chart").forEach((place) => watcher.observe(place));

// The numbers of a chart as a table, for those who do not see it.
function showRows(details) {
  if (details.querySelector("table")) return;
  const rows = figures.get(details.dataset.figure).rows;
  const names = [...new Set(rows.flatMap(Object.keys))];
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of names) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const name of names) {
      const value = row[name] ?? "";
      line.insertCell().textContent = Array.isArray(value) ? value.join(" ") : value;
    }
  }
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Numbers of the chart");
  scroll.append(table);
  details.append(scroll);
}
document.addEventListener("toggle", (event) => {
  if (event.target.matches?.("details.rows[open]")) showRows(event.target);
}, true);

// Tables

const language = { search: "Search", lengthMenu: "Show _MENU_", emptyTable: "None", zeroRecords: "Nothing fits" };

// A table wider than the page scrolls by itself, with the keyboard, too.
function scrolling(table) {
  const place = table.closest(".dt-layout-table") ?? table.parentElement;
  place.tabIndex = 0;
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", table.getAttribute("aria-label") ?? "Table");
}

function sortable(table) {
  if (DataTable.isDataTable(table)) return;
  new DataTable(table, { paging: false, info: false, order: [], autoWidth: false, language,
                         layout: { topStart: null, topEnd: "search" } });
  scrolling(table);
}

const runs = document.getElementById("runs");
const listed = new DataTable(runs, {
  order: [], autoWidth: false, pageLength: 25, lengthMenu: [10, 25, 50, 100, { label: "all", value: -1 }], language,
  layout: { topStart: "pageLength", topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
});
scrolling(runs);
for (const select of document.querySelectorAll(".filters select")) {
  const column = listed.column(Number(select.dataset.column));
  const values = new Set(column.nodes().toArray().map((cell) => cell.dataset.value));
  for (const value of [...values].sort()) select.add(new Option(value, value));
  select.addEventListener("change", () => listed.draw());
}
DataTable.ext.search.push((settings, _, place) => {
  if (settings.nTable !== runs) return true;
  const cells = listed.row(place).node().cells;
  return [...document.querySelectorAll(".filters select")].every(
    (select) => !select.value || cells[Number(select.dataset.column)].dataset.value === select.value);
});

for (const details of document.querySelectorAll("details.table")) {
  const open = () => { if (details.open) sortable(details.querySelector("table")); };
  details.addEventListener("toggle", open);
  open();
}

// A page of each run

async function unpacked(name) {
  const bytes = Uint8Array.from(atob(packed[name]), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return undefined; }
}

async function route() {
  const [, name] = location.hash.match(/^#run=(.*)$/) || [];
  const wanted = name === undefined ? undefined : decoded(name);
  if (wanted === undefined || !Object.hasOwn(packed, wanted)) {
    runView.hidden = true;
    overview.hidden = false;
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target) {
      if (target.tagName === "DETAILS") target.open = true;
      target.scrollIntoView();
    }
    return;
  }
  const run = await unpacked(wanted);
  run.figures.forEach((figure, place) => figures.set(`r${place}`, figure));
  runView.innerHTML = run.html;
  overview.hidden = true;
  runView.hidden = false;
  scrollTo(0, 0);
  runView.querySelector("h1").focus();
  runView.querySelectorAll("table.sortable").forEach(sortable);
  watch(runView);
}

addEventListener("hashchange", route);
watch(overview);
route().then(() => { root.dataset.ready = "yes"; });

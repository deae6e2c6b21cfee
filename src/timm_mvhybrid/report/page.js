"use strict";
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  themeButton.textContent = dark ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
}
setTheme(prefersDark.matches);
prefersDark.addEventListener("change", (event) => setTheme(event.matches));
themeButton.addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

function compare(first, second, numeric) {
  // what does not exist comes last, whichever way the column is sorted
  if (first === undefined || second === undefined) return 0;
  return numeric ? first - second : first.localeCompare(second, undefined, { numeric: true });
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const descending = now ? now === "ascending" : numeric;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const known = [...table.tBodies[0].rows].filter((row) => value(row) !== undefined);
    const unknown = [...table.tBodies[0].rows].filter((row) => value(row) === undefined);
    known.sort((a, b) => compare(value(a), value(b), numeric) * (descending ? -1 : 1));
    table.tBodies[0].append(...known, ...unknown);
  }));
}

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const index = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[index].map((from, i) => Math.round(from + (STOPS[index + 1][i] - from) * (place - index)));
  return `rgb(${mixed.join(",")})`;
}
function svgElement(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
function limits(values) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return [0, 1];
  const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}
function drawSpots(map, values, [low, high], title) {
  const [left, right] = limits(map.x), [top, bottom] = limits(map.y);
  const width = right - left, height = bottom - top;
  const radius = 0.49 * Math.sqrt((width * height) / Math.max(map.x.length, 1)) || 1;
  const picture = svgElement("svg", {
    viewBox: `${left - 1.3 * radius} ${top - 1.3 * radius} ${width + 2.6 * radius} ${height + 2.6 * radius}`,
    role: "img", "aria-label": title,
  });
  values.forEach((value, index) => {
    if (value === null) return;
    const spot = svgElement("circle", {
      cx: map.x[index], cy: map.y[index], r: radius, fill: colour((value - low) / (high - low)),
    });
    const note = svgElement("title", {});
    note.textContent = `measured ${map.measured[index]}, predicted ${map.predicted[index]}`;
    spot.append(note);
    picture.append(spot);
  });
  return picture;
}
const text = (tag, content) => Object.assign(document.createElement(tag), { textContent: content });
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
function colourKey(range, unit) {
  const bar = document.createElement("div");
  bar.className = "key";
  const ramp = document.createElement("i");
  ramp.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(colour).join(", ")})`;
  bar.append(text("span", signed(range[0], 2)), ramp, text("span", `${signed(range[1], 2)} ${unit}`));
  return bar;
}
const mapData = document.getElementById("map-data");
if (mapData) {
  const maps = JSON.parse(mapData.textContent);
  const selects = Object.fromEntries(["gene", "sample", "protocol"].map((key) => [key, document.getElementById(`map-${key}`)]));
  const own = document.getElementById("map-own");
  const target = document.getElementById("map-panels");
  function panel(title, note, picture) {
    const box = document.createElement("div");
    box.append(text("h3", title), Object.assign(text("p", note), { className: "hint" }), picture);
    return box;
  }
  function draw() {
    const chosen = maps.filter((map) => Object.entries(selects).every(([name, select]) => map[name] === select.value));
    target.replaceChildren();
    if (!chosen.length) {
      target.append(text("p", "No spots of this sample were predicted for this gene."));
      return;
    }
    const first = chosen[0];
    const shared = limits(first.measured);
    const title = `${first.gene} on ${first.sample}`;
    const measured = panel("Measured", `${first.x.length} spots`, drawSpots(first, first.measured, shared, `${title}, measured`));
    measured.append(colourKey(shared, "log1p"));
    target.append(measured);
    for (const map of chosen) {
      const range = own.checked ? limits(map.predicted) : shared;
      const note = map.pcc === null ? "no correlation on this sample" : `PCC on this sample ${signed(map.pcc, 3)}`;
      const box = panel(map.model, note, drawSpots(map, map.predicted, range, `${title}, predicted by ${map.model}`));
      box.append(colourKey(range, "log1p"));
      target.append(box);
    }
  }
  for (const select of Object.values(selects)) select.addEventListener("change", draw);
  own.addEventListener("change", draw);
  function step(by) {
    const select = selects.gene;
    select.selectedIndex = (select.selectedIndex + by + select.options.length) % select.options.length;
    draw();
  }
  document.getElementById("map-previous").addEventListener("click", () => step(-1));
  document.getElementById("map-next").addEventListener("click", () => step(1));
  draw();
}

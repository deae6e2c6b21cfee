{
  const data = JSON.parse(document.getElementById("slide-map-data").textContent);
  const byId = (name) => document.getElementById(name);
  const [list, search, all, opacity, hatch, shared] =
    ["gene-list", "gene-search", "gene-all", "map-opacity", "map-hatch", "map-shared"].map(byId);
  const [frame, layers, colours, lines, readout] =
    ["map-frame", "map-layers", "map-colours", "map-lines", "map-readout"].map(byId);
  const bytes = (encoded) => Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const numbers = ({ low, step, levels }) => {
    const found = new Float64Array(data.num).fill(low ?? Infinity);
    if (levels) bytes(levels).forEach((level, index) => { found[index] += step * level; });
    return found;
  };
  const corners = new Int32Array(bytes(data.corners).buffer);
  const x = (index) => corners[2 * index] / 4, y = (index) => corners[2 * index + 1] / 4;
  const isFar = Array.from(bytes(data.far)).flatMap((byte) => [0, 1, 2, 3, 4, 5, 6, 7].map((bit) => (byte >> bit) & 1));
  const distance = numbers(data.distance);
  // the same predictions are looked at again and again
  const decoded = new Map();
  const VIEWS = { mean: "prediction", lower: "lower bound", upper: "upper bound", width: "width of the interval", measured: "measured" };
  let gene = null, zoom = 1, marked = -1;

  function views(of) {
    if (!decoded.has(of)) {
      const mean = numbers(of.mean), below = numbers(of.below), above = numbers(of.above);
      const found = {
        mean, lower: mean.map((value, i) => value - below[i]), upper: mean.map((value, i) => value + above[i]),
        width: below.map((value, i) => value + above[i]),
      };
      if (of.measured) found.measured = numbers(of.measured);
      decoded.set(of, found);
    }
    return decoded.get(of);
  }
  const view = () => document.querySelector('input[name="map-view"]:checked').value;
  function range(values) {
    // a few extreme patches would leave one colour to all others
    const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
    if (!sorted.length) return [0, 1];
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    const [low, high] = [at(0.01), at(0.99)];
    return high > low ? [low, high] : limits(Array.from(sorted));
  }
  function scale(of, name) {
    if (!shared.checked || name === "width") return range(views(of)[name]);
    const ranges = Object.entries(views(of)).filter(([other]) => other !== "width").map(([, values]) => range(values));
    return [Math.min(...ranges.map((one) => one[0])), Math.max(...ranges.map((one) => one[1]))];
  }

  function cells(context, draw) {
    const ratio = context.canvas.width / data.size[0];
    for (let index = 0; index < data.num; index++) {
      // whole pixels, so that neighbours neither overlap nor leave a seam
      const left = Math.round(x(index) * ratio), right = Math.round((x(index) + data.cell) * ratio);
      const top = Math.round(y(index) * ratio), bottom = Math.round((y(index) + data.cell) * ratio);
      draw(index, left, top, Math.max(right - left, 1), Math.max(bottom - top, 1));
    }
  }
  function fit(canvas) {
    const wanted = Math.min(Math.round(layers.clientWidth * (window.devicePixelRatio || 1)), 6000);
    canvas.width = Math.max(wanted, 1);
    canvas.height = Math.max(Math.round(wanted * data.size[1] / data.size[0]), 1);
    return canvas.getContext("2d");
  }
  function drawColours() {
    const context = fit(colours);
    const values = views(gene)[view()], [low, high] = scale(gene, view());
    const ramp = Array.from({ length: 256 }, (_, level) => colour(level / 255));
    cells(context, (index, ...box) => {
      context.fillStyle = ramp[Math.round(255 * Math.min(Math.max((values[index] - low) / (high - low), 0), 1))];
      context.fillRect(...box);
    });
  }
  function pattern(context) {
    const tile = document.createElement("canvas");
    const side = tile.width = tile.height = Math.round(8 * (window.devicePixelRatio || 1));
    const pen = tile.getContext("2d");
    for (const [style, width] of [["rgba(255,255,255,0.85)", side / 3], ["rgba(20,20,20,0.9)", side / 7]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      for (const shift of [-side, 0, side]) {
        pen.beginPath();
        pen.moveTo(shift - 1, side + 1);
        pen.lineTo(shift + side + 1, -1);
        pen.stroke();
      }
    }
    return context.createPattern(tile, "repeat");
  }
  function drawLines() {
    const context = fit(lines);
    const striped = pattern(context);
    cells(context, (index, left, top, width, height) => {
      if (isFar[index] && hatch.checked) {
        context.fillStyle = striped;
        context.fillRect(left, top, width, height);
      }
      if (index === marked) {
        for (const [style, thick] of [["#fff", 5], ["#111", 2]]) {
          context.strokeStyle = style;
          context.lineWidth = thick;
          context.strokeRect(left, top, width, height);
        }
      }
    });
  }
  function drawReliability() {
    const [r, low, high] = gene.r;
    const at = (value) => 90 + 84 * Math.min(Math.max(value, -1), 1);
    const picture = svgElement("svg", { viewBox: "0 0 180 24", "aria-hidden": "true" });
    picture.append(
      svgElement("line", { x1: 6, x2: 174, y1: 12, y2: 12, class: "grid" }),
      svgElement("line", { x1: 90, x2: 90, y1: 3, y2: 21, class: "zero" }),
    );
    if (low !== null) picture.append(svgElement("line", { x1: at(low), x2: at(high), y1: 12, y2: 12, class: "series colour-0", "stroke-width": 3 }));
    if (r !== null) picture.append(svgElement("circle", { cx: at(r), cy: 12, r: 5, class: "marker colour-0" }));
    const words = r === null ? "no correlation is known"
      : `r ${signed(r, 2)}${low === null ? "" : `, ${signed(low, 2)} to ${signed(high, 2)}`}${data.note ? ` ${data.note}` : ""}`;
    const parts = [text("h3", gene.name), picture, text("p", words)];
    if (!gene.predictable) parts.push(Object.assign(text("p", "cannot be predicted: the interval includes 0"), { className: "doubt" }));
    byId("map-reliability").replaceChildren(...parts);
  }
  function draw() {
    if (!gene) return;
    drawColours();
    drawReliability();
    const far = isFar.reduce((sum, one) => sum + one, 0);
    lines.setAttribute("aria-label", `${gene.name}, ${VIEWS[view()]}, on ${data.num} patches of the slide, ${far} of them far from the training data`);
    const values = views(gene)[view()], first = values[0];
    const same = values.every((value) => value === first || Math.abs(value - first) < 1e-6);
    const words = `${signed(first, 2).replace("Infinity", "∞")} ${data.unit} everywhere`;
    byId("map-key").replaceChildren(same ? Object.assign(text("div", words), { className: "key" }) : colourKey(scale(gene, view()), data.unit));
    if (marked >= 0) read();
  }
  function read() {
    const found = views(gene), value = (name) => signed(found[name][marked], 2).replace("Infinity", "∞");
    const measured = found.measured ? `, measured ${value("measured")}` : "";
    readout.textContent = `${gene.name} at x ${Math.round(x(marked) + data.cell / 2)}, y ${Math.round(y(marked) + data.cell / 2)} px: ` +
      `${value("mean")}, from ${value("lower")} to ${value("upper")} ${data.unit}${measured}; distance to the training data ` +
      `${distance[marked].toFixed(2)}${isFar[marked] ? ", far" : ""}`;
  }
  function mark(index) {
    if (index < 0 || index === marked) return;
    marked = index;
    drawLines();
    if (gene) read();
  }
  function nearest(px, py, allowed = () => true) {
    let best = -1, least = Infinity;
    for (let index = 0; index < data.num; index++) {
      const dx = x(index) + data.cell / 2 - px, dy = y(index) + data.cell / 2 - py;
      if (dx * dx + dy * dy < least && allowed(dx, dy)) { least = dx * dx + dy * dy; best = index; }
    }
    return best;
  }
  lines.addEventListener("pointermove", (event) => {
    const box = lines.getBoundingClientRect();
    const px = (event.clientX - box.left) / box.width * data.size[0], py = (event.clientY - box.top) / box.height * data.size[1];
    mark(nearest(px, py, (dx, dy) => Math.abs(dx) <= data.cell / 2 && Math.abs(dy) <= data.cell / 2));
  });
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  lines.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    if (marked < 0) { mark(0); return; }
    // the nearest patch within 45° of the direction
    mark(nearest(x(marked) + data.cell / 2, y(marked) + data.cell / 2, (dx, dy) => {
      const along = dx * step[0] + dy * step[1], across = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
      return along > 0 && across <= along;
    }));
  });

  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const shown = data.genes.filter((one) => (one.predictable || all?.checked) && one.name.toLowerCase().includes(wanted));
    list.replaceChildren(...shown.map((one) => {
      const words = `${one.predictable ? "" : "⚠ "}${one.name} · ${one.r[0] === null ? "–" : signed(one.r[0], 2)}`;
      return Object.assign(new Option(words, one.name, false, one === gene), { className: one.predictable ? "" : "doubtful" });
    }));
    byId("gene-count").textContent = `${shown.length} of ${data.genes.length} genes`;
    if (shown.length && !shown.includes(gene)) { list.selectedIndex = 0; choose(); }
  }
  function choose() {
    gene = data.genes.find((one) => one.name === list.value) ?? gene;
    draw();
  }
  list.addEventListener("change", choose);
  search.addEventListener("input", fill);
  search.addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); list.focus(); } });
  all?.addEventListener("change", fill);
  shared.addEventListener("change", draw);
  hatch.addEventListener("change", drawLines);
  for (const radio of document.querySelectorAll('input[name="map-view"]')) radio.addEventListener("change", draw);
  const fade = () => { colours.style.opacity = opacity.value / 100; };
  opacity.addEventListener("input", fade);
  function size() {
    // all of the slide at first, whatever its shape
    const width = Math.min(frame.clientWidth, 720 * data.size[0] / data.size[1]);
    layers.style.width = `${Math.floor(width * zoom)}px`;
    byId("map-out").disabled = zoom <= 1;
    byId("map-in").disabled = zoom >= 8;
    draw();
    drawLines();
  }
  const enlarge = (by) => { zoom = Math.min(Math.max(zoom * by, 1), 8); size(); };
  byId("map-in").addEventListener("click", () => enlarge(2));
  byId("map-out").addEventListener("click", () => enlarge(0.5));
  addEventListener("resize", size);
  fade();
  fill();
  size();
}

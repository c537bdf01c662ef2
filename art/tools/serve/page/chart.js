// Class probabilities over time, as lines.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000, HEIGHT = 100; // of the drawing; it is stretched to its place

export function chart({ seconds: times, lines }, seconds, watchers) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  const named = lines.map(({ name, shares }) => `${name} ${(100 * shares.at(-1)).toFixed(0)} %`);
  drawing.setAttribute("aria-label", `Probabilities over ${seconds.toFixed(1)} seconds, at the end ${named.join(", ")}`);
  for (const share of [0, 0.5, 1]) drawing.append(line([[0, share], [1, share]], { stroke: "var(--line)" }, 1));
  const place = (time) => time / Math.max(seconds, 1e-9);
  lines.forEach(({ colour, shares }, i) => {
    const points = shares.map((share, t) => [place(times[t]), share]);
    if (points.length === 1) points.unshift([0, points[0][1]]);
    drawing.append(line(points, { stroke: colour }, i ? 2 : 3.5));
  });
  const figure = document.createElement("div");
  figure.className = "chart";
  const plot = document.createElement("div");
  plot.className = "plot";
  const cursor = document.createElement("b");
  watchers.push((now) => (cursor.style.left = `calc(${100 * place(now)}% - 1px)`));
  const axis = document.createElement("div");
  axis.className = "axis";
  axis.append(...["0 s", `${seconds.toFixed(1)} s`].map((text) => label(text)));
  plot.append(drawing, cursor, ...[0, 50, 100].map((share) => label(`${share} %`, 100 - share)));
  figure.append(plot, axis, names(lines));
  return figure;
}

function label(text, top = null) {
  const span = Object.assign(document.createElement("span"), { textContent: text });
  if (top !== null) span.style.top = `${top}%`;
  return span;
}

function line(points, style, width) {
  const path = document.createElementNS(SVG, "polyline");
  path.setAttribute("points", points.map(([x, share]) => `${x * WIDTH},${(1 - share) * HEIGHT}`).join(" "));
  path.setAttribute("fill", "none");
  path.setAttribute("stroke-width", width);
  path.setAttribute("stroke-linejoin", "round");
  path.setAttribute("vector-effect", "non-scaling-stroke");
  Object.assign(path.style, style);
  return path;
}

function names(lines) {
  const list = document.createElement("ul");
  for (const { name, colour } of lines) {
    const dot = Object.assign(document.createElement("span"), { className: "dot" });
    dot.style.background = colour;
    const item = document.createElement("li");
    item.append(dot, name);
    list.append(item);
  }
  return list;
}

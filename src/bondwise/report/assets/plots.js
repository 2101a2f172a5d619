// Elements, numbers and pictures: what the views are built of.
const SVG = "http://www.w3.org/2000/svg";

const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => value !== null && value !== undefined;
const MISSING = "not measured";
const number = (value, figures = 3) => {
  if (!known(value)) return MISSING;
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e7)
    ? Number(value).toExponential(figures - 1)
    : Number(value.toPrecision(Math.max(figures, size >= 1 ? Math.floor(Math.log10(size)) + 1 : 1)))
      .toLocaleString("en", { maximumFractionDigits: 8 });
  return text.replace("-", "\u2212");
};

// Round places between two ends, about so many.
const ticks = (low, high, about = 5) => {
  const power = 10 ** Math.floor(Math.log10((high - low) / about));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => (high - low) / size <= about + 0.5);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
};
const decades = (low, high) => {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const powers = to - from > 2 ? [1] : [1, 2, 5];
  const every = Math.max(1, Math.ceil((to - from) / 7));
  const round = Array.from({ length: to - from + 1 }, (_, k) => from + k)
    .filter((power) => (power - from) % every === 0)
    .flatMap((power) => powers.map((m) => Number((m * 10 ** power).toPrecision(6))))
    .filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return round.length > 1 ? round : ticks(low, high);
};

// A plane with axes. x and y are {low, high, log, name}; place gives pixels.
const plane = (wide, high, x, y, left = 52) => {
  const box = { left, right: wide - 10, top: 10, bottom: high - 38 };
  const along = (axis, from, to) => {
    const at = axis.log ? Math.log10 : (value) => value;
    const [a, b] = [at(axis.low), at(axis.high)];
    return (value) => from + (to - from) * (at(value) - a) / (b - a || 1);
  };
  const px = along(x, box.left, box.right), py = along(y, box.bottom, box.top);
  const marks = (axis, about) => (axis.log ? decades : ticks)(axis.low, axis.high, about)
    .filter((value) => !axis.whole || Number.isInteger(value));
  const grid = [
    marks(y, 5).map((value) => [
      s("path", { d: `M${box.left} ${py(value)}H${box.right}`, class: "grid" }),
      s("text", { x: box.left - 6, y: py(value) + 4, "text-anchor": "end" }, number(value)),
    ]),
    marks(x, wide < 480 ? 5 : 8).map((value) =>
      s("text", { x: px(value), y: box.bottom + 16, "text-anchor": "middle" }, number(value))),
    s("text", { x: (box.left + box.right) / 2, y: high - 4, "text-anchor": "middle" }, x.name),
    y.name && s("text", { transform: `translate(12 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.name),
  ];
  return { box, px, py, grid };
};
const canvas = (wide, high, title, ...children) =>
  s("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "img", class: "plot" }, s("title", {}, title), ...children);
const room = (most = 720) => Math.min(most, Math.max(300, document.getElementById("view").clientWidth - 48));
const line = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// Below a picture, so that it is saved with it: a line for each entry.
const legend = (entries, y) => entries.map(({ kind, name }, k) => s("g", { transform: `translate(52 ${y + 16 * k})` },
  s("path", { d: "M0 -9H26V1H0Z", class: `band ${kind}` }), s("path", { d: "M0 -4H26", class: `line ${kind}` }), s("text", { x: 33, y: 0 }, name)));

// The values of a bond in falling order, as parts of their root sum of squares, over the band of each null.
const shares = (bond) => {
  const size = Math.hypot(...bond.values.filter(known)) || 1;
  return bond.values.map((value) => (known(value) ? value / size : null));
};
const bands = (bond) => (bond.nulls ?? []).filter((band) => band.applies !== false && band.low?.length && band.high?.length);
const spectrum = (bond, log, hidden) => {
  const wide = room(520), plot = 300, values = shares(bond);
  const nulls = bands(bond).map((band, k) => ({ ...band, kind: `n${k % 5}` })).filter((band) => !hidden.has(band.name));
  const all = [values, ...nulls.flatMap((band) => [band.low, band.high])].flat().filter(known);
  const top = Math.max(...all) || 1;
  const floor = Math.max(Math.min(...all.filter((value) => value > 0), top), top * 1e-6);
  const y = { ...(log ? { low: floor * 0.9, high: top * 1.1, log } : { low: 0, high: top * 1.05 }), name: "value / root sum of squares" };
  const { px, py, grid } = plane(wide, plot, { low: 1, high: Math.max(values.length, 2), whole: true, name: "place in falling order" }, y);
  const at = (list) => list.map((value, k) => [px(k + 1), py(Math.max(value ?? 0, y.low))]);
  const drawn = nulls.map(({ low, high, kind }) => s("g", {},
    s("path", { d: `${line(at(high))}${line(at(low).reverse()).replace("M", "L")}Z`, class: `band ${kind}` }),
    s("path", { d: line(at(high)), class: `edge ${kind}` }), s("path", { d: line(at(low)), class: `edge ${kind}` })));
  const seen = values.map((value, k) => [value, k]).filter(([value]) => known(value) && value >= y.low);
  const own = seen.map(([value, k]) => [px(k + 1), py(value)]);
  const dots = values.length > 80 ? null : seen.map(([value, k], n) =>
    s("circle", { cx: own[n][0], cy: own[n][1], r: 3, class: "dot own", "data-tip": `place ${k + 1}: ${number(value, 4)}` }));
  const names = [{ kind: "own", name: "this bond" }, ...nulls.map(({ kind, name }) => ({ kind, name: `${name}, 95 % of the draws` }))];
  return canvas(wide, plot + 16 * names.length + 4, `Spectrum of bond ${bond.name}: ${values.length} values`,
    grid, drawn, s("path", { d: line(own), class: "line own" }), dots, legend(names, plot + 14));
};

// One row of bars for each rung, over the same indices.
const bars = (rows, axis) => {
  const wide = room(1072), each = 74, high = rows.length * each + 40, left = 52;
  const count = Math.max(...rows.map((row) => row.values.length));
  const step = (wide - left - 10) / count;
  const parts = rows.map((row, k) => {
    const values = row.values.map((value) => value ?? 0);
    const top = Math.max(...values, 0), low = Math.min(...values, 0), span = top - low || 1;
    const from = k * each + 20, tall = each - 26, zero = from + tall * top / span;
    return s("g", {},
      s("text", { x: left, y: from - 6, class: "name" }, row.name),
      s("text", { x: left - 6, y: from + 9, "text-anchor": "end" }, number(top || low)),
      s("path", { d: `M${left} ${zero.toFixed(1)}H${wide - 10}`, class: "grid" }),
      values.map((value, index) => {
        const tall_ = Math.max(tall * Math.abs(value) / span, value ? 0.5 : 0);
        return s("rect", {
          x: (left + index * step).toFixed(2), width: Math.max(step - (step > 4 ? 1 : 0.2), 0.6).toFixed(2),
          y: (value < 0 ? zero : zero - tall_).toFixed(1), height: tall_.toFixed(1),
          class: `rod ${row.kind?.[index] ?? ""}`, "data-tip": `index ${index}: ${number(row.values[index], 4)}${row.tip?.[index] ?? ""}`,
        });
      }));
  });
  const every = ticks(0, Math.max(count - 1, 1), wide < 480 ? 5 : 10).filter(Number.isInteger);
  const foot = every.map((index) =>
    s("text", { x: left + (index + 0.5) * step, y: high - 22, "text-anchor": "middle" }, index));
  return canvas(wide, high, rows.map((row) => row.name).join(", "), parts, foot,
    s("text", { x: (left + wide - 10) / 2, y: high - 5, "text-anchor": "middle" }, axis));
};

const histogram = (data, log, wide = room(560), high = 240) => {
  const { low, high: end, counts } = data, top = Math.max(...counts, 1);
  const y = log ? { low: 0.7, high: top * 1.3, log, name: "tokens" } : { low: 0, high: top * 1.05, name: "tokens" };
  const { box, px, py, grid } = plane(wide, high, { low, high: end, name: "value of the feature" }, y);
  const step = (end - low) / counts.length;
  const rects = counts.map((count, k) => count > 0 && s("rect", {
    x: (px(low + k * step) + 0.5).toFixed(2), width: Math.max(px(low + step) - px(low) - 1, 0.6).toFixed(2),
    y: py(count).toFixed(1), height: (box.bottom - py(count)).toFixed(1), class: "rod",
    "data-tip": `${number(low + k * step)} to ${number(low + (k + 1) * step)}: ${count.toLocaleString("en")} tokens`,
  }));
  const zero = low < 0 && end > 0 ? s("path", { d: `M${px(0)} ${box.top}V${box.bottom}`, class: "zero" }) : null;
  return canvas(wide, high, `Histogram of the feature from ${number(low)} to ${number(end)}`, grid, zero, rects);
};

// The same without axes, for a card; heights are logarithms.
const sketch = ({ counts }) => {
  const wide = 120, high = 26, top = Math.log1p(Math.max(...counts, 1)), step = wide / counts.length;
  const d = counts.map((count, k) => {
    const tall = high * Math.log1p(count) / top;
    return tall ? `M${(k * step).toFixed(1)} ${high}v${(-tall).toFixed(1)}h${(step * 0.85).toFixed(1)}v${tall.toFixed(1)}z` : "";
  }).join("");
  return s("svg", { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, "aria-hidden": "true", class: "sketch" }, s("path", { d, class: "rod" }));
};

// A picture as a file that needs no style sheet: computed styles become attributes, in light colours.
const INHERITED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin",
  "font-family", "font-size", "font-weight", "font-style", "text-anchor", "visibility"];
const bare = (element) => {
  for (const { name } of [...element.attributes]) {
    if (/^(class|style|tabindex|role|href|data-.*|aria-.*)$/.test(name)) element.removeAttribute(name);
  }
};
const standalone = (svg) => {
  const theme = root.dataset.theme;
  root.dataset.theme = "light";
  const copy = svg.cloneNode(true);
  copy.querySelector(".kinds")?.removeAttribute("transform"); // it follows the scrolling
  const aids = copy.querySelectorAll(".hit");
  const from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  const styles = new Map();
  from.forEach((element, k) => {
    bare(to[k]);
    const style = getComputedStyle(element), above = element === svg ? null : styles.get(element.parentNode);
    const own = Object.fromEntries(INHERITED.map((name) => [name, style.getPropertyValue(name)]));
    styles.set(element, own);
    if (["title", "desc"].includes(element.nodeName)) return;
    for (const name of INHERITED) if (own[name] !== above?.[name]) to[k].setAttribute(name, own[name]);
    if (style.opacity !== "1") to[k].setAttribute("opacity", style.opacity);
  });
  if (theme === undefined) delete root.dataset.theme;
  else root.dataset.theme = theme;
  const [x, y, ...size] = copy.getAttribute("viewBox").split(/[ ,]+/);
  const [wide, high] = [svg.dataset.wide ?? size[0], svg.dataset.high ?? size[1]]; // room for what the file alone has
  fill(copy, { xmlns: SVG, width: wide, height: high, viewBox: `${x} ${y} ${wide} ${high}` }, []);
  aids.forEach((aid) => aid.remove());
  return new XMLSerializer().serializeToString(copy);
};
const save = (svg, name) => {
  const address = URL.createObjectURL(new Blob([standalone(svg)], { type: "image/svg+xml" }));
  const link = h("a", { href: address, download: `${name.replace(/[^\w.-]+/g, "_")}.svg` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};
const saver = (find, name) =>
  h("button", { type: "button", class: "save", "aria-label": `Save SVG: ${name}`, click: () => save(find(), name) }, "Save SVG");

// A picture with its title and note; `draw` may be called again, when a switch is turned.
const figure = (title, name, draw, { note, controls } = {}) => {
  const place = h("div", { class: "net" });
  const redraw = () => place.replaceChildren(...[draw()].flat().filter(known));
  redraw();
  const heading = h("div", { class: "title" }, h("h3", {}, title), controls?.(redraw), saver(() => place.querySelector("svg"), name));
  return h("figure", { class: "picture" }, heading, place, note && h("figcaption", {}, note));
};
// The numbers of a picture, made when asked for.
const table = (title, heads, rows) => {
  const details = h("details", {}, h("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    details.append(h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": title }, h("table", { class: "bonds" },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows().map((row) => h("tr", {}, row.map((cell, k) =>
        h(k ? "td" : "th", k ? {} : { scope: "row" }, typeof cell === "number" ? number(cell, 4) : cell ?? "-")))))))); 
  });
  return details;
};
const facts = (rows) => h("dl", {}, rows.filter(([, value]) => value !== undefined).map(([term, value]) =>
  h("div", {}, h("dt", {}, term), h("dd", {}, typeof value === "number" || value === null ? number(value) : value))));

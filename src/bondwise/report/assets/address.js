// Which view an address asks for, or a sentence why there is none.
const VIEWS = { layer: layerView, bond: bondView, feature: featureView };
const PARTS = { layer: 1, bond: 2, feature: 3 };
const decoded = (hash) => {
  try { return hash.slice(1).split("/").map(decodeURIComponent); } catch { return ["?"]; }
};
const fault = ([view, ...parts]) => {
  if (!VIEWS[view] || parts.length !== PARTS[view]) return "This address leads to no view.";
  const [name, which, index] = parts;
  if (!places.has(name)) return `There is no layer ${name} here.`;
  if (view === "layer") return null;
  const bond = layerOf(name).bonds.find((other) => other.name === which);
  if (!bond) return `Layer ${name} has no bond ${which}.`;
  if (view === "feature" && !bond.features.some((feature) => String(feature.index) === index)) return `Bond ${which} of ${name} has no feature with index ${index} here.`;
  return null;
};
const model = document.getElementById("model"), stage = document.getElementById("stage");
const HOME = ["", "#", "#model"];
const depth = (hash) => (HOME.includes(hash) ? 0 : PARTS[decoded(hash)[0]] ?? 1);
const scrolls = new Map();
let here = "#model";

const show = (hash, moved) => {
  const home = HOME.includes(hash);
  model.hidden = !home;
  stage.hidden = home;
  document.body.classList.toggle("inside", !home);
  if (home) {
    crumbs([]);
    stage.replaceChildren();
  } else if (document.readyState === "loading") {
    stage.replaceChildren(near("Opening \u2026"));
    return;
  } else {
    const wrong = fault(decoded(hash)), [view, ...parts] = decoded(hash);
    if (wrong) crumbs([]);
    const made = wrong ? [heading("Nothing here"), near(wrong), h("p", {}, h("a", { href: "#model" }, "Back to the model"))] : VIEWS[view](...parts);
    stage.replaceChildren(...made.flat(9).filter(known).filter((part) => part !== false));
  }
  const title = (home ? model : stage).querySelector("h2")?.textContent ?? "";
  document.title = home ? `${contents.model}, read through its bonds` : `${title} - ${contents.model}`;
  if (moved) land(hash);
};
// Going up, the place one came from has the focus; going down, the new title.
const land = (hash) => {
  const up = depth(hash) < depth(here);
  const from = up ? [...document.querySelectorAll("#view a")].find((link) => here.startsWith(link.getAttribute("href")) && link.getClientRects().length) : null;
  const target = from || (HOME.includes(hash) ? model : stage).querySelector("h2");
  target?.focus({ preventScroll: true });
  if (from?.matches(".cell")) rove(from);
  scrollTo({ top: up ? scrolls.get(hash) ?? 0 : Math.min(scrollY, document.querySelector(".top").offsetTop), behavior: "instant" });
  document.getElementById("said").textContent = document.title;
};
history.scrollRestoration = "manual";
addEventListener("scroll", () => scrolls.set(location.hash || "#model", scrollY), { passive: true });
addEventListener("hashchange", () => {
  show(location.hash, true);
  here = location.hash || "#model";
});
let lastRoom = 0;
addEventListener("resize", () => {
  if (stage.hidden || room() === lastRoom) return;
  lastRoom = room();
  show(location.hash, false);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address stays that of the view
  document.getElementById("view").focus();
});

// The strip: one stop for Tab, arrow keys inside.
const cells = [...document.querySelectorAll(".cell")];
const rove = (to) => {
  cells.forEach((cell) => cell.setAttribute("tabindex", cell === to ? 0 : -1));
};
if (cells.length) rove(cells[0]);
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const cellBeside = (cell, [dx, dy]) => {
  const [x, y] = [Number(cell.dataset.column), Number(cell.dataset.row)];
  const ahead = cells.filter((other) => {
    const [ox, oy] = [other.dataset.column - x, other.dataset.row - y];
    return dx ? oy === 0 && Math.sign(ox) === dx : ox === 0 && Math.sign(oy) === dy;
  });
  const far = (other) => Math.abs(other.dataset.column - x) + Math.abs(other.dataset.row - y);
  return ahead.sort((a, b) => far(a) - far(b))[0];
};
const cardBeside = (card_, [dx, dy]) => {
  const all = [...card_.closest(".cards").querySelectorAll(".card")];
  const top = (other) => other.getBoundingClientRect().top;
  const wide = all.filter((other) => top(other) === top(all[0])).length;
  return all[all.indexOf(card_) + dx + dy * wide];
};
const parent = (hash) => {
  const [view, name, which] = decoded(hash);
  if (view === "feature") return address("bond", name, which);
  return view === "bond" ? address("layer", name) : "#model";
};
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  const at = event.target;
  if (event.key === "Escape") {
    if (at.closest?.(".finder")) closeFinder();
    else if (depth(location.hash)) location.hash = parent(location.hash);
    return;
  }
  const move = MOVES[event.key];
  if (!move || at.closest?.("input, select, .tall, .finder")) return;
  const place = at.closest?.(".cell, .card");
  const next = place && (place.matches(".cell") ? cellBeside : cardBeside)(place, move);
  if (next) {
    event.preventDefault();
    if (next.matches(".cell")) rove(next);
    next.focus();
  } else if (!place && move[0] && decoded(location.hash)[0] === "feature") {
    const link = stage.querySelector(`.steps a[rel=${move[0] > 0 ? "next" : "prev"}]`);
    if (link) location.hash = link.getAttribute("href");
  }
});

// The strip against another null: colours, classes and the numbers below.
const across = document.getElementById("across");
document.getElementById("null")?.addEventListener("change", (event) => {
  const limits = JSON.parse(document.querySelector("#model .legend").dataset.steps);
  for (const cell of cells) {
    const fars = [...cell.querySelectorAll(".tie")].map((bond) => {
      const far = JSON.parse(bond.dataset.far)[event.target.value] ?? null;
      const count = limits.filter((limit) => Math.abs(far) >= limit).length;
      bond.setAttribute("class", `tie ${far === null ? "zn" : `z${3 + Math.sign(far) * count}`}`);
      return far;
    }).filter(known);
    const far = fars.sort((a, b) => Math.abs(b) - Math.abs(a))[0];
    const size = Math.abs(far);
    cell.querySelector(".far").textContent = !known(far) ? "-"
      : size >= 1000 ? (far > 0 ? "999+" : "\u2212999") : far.toFixed(size >= 9.95 ? 0 : 1).replace("-", "\u2212");
  }
});
across?.addEventListener("scroll", () => {
  const kinds = across.querySelector(".kinds");
  kinds.setAttribute("transform", `translate(${across.scrollLeft} 0)`);
}, { passive: true });
for (const place of document.querySelectorAll("#model [data-save]")) {
  place.querySelector(".title").append(saver(() => place.querySelector("svg.atlas"), place.dataset.save));
}

// The search box: links to the layers whose names hold all words.
const search = document.getElementById("search"), hits = document.getElementById("hits");
const MOST = 12;
const closeFinder = () => {
  search.value = "";
  hits.hidden = true;
  search.focus();
};
const find = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (layer) => {
    const text = `${layer.name} ${(layer.shape ?? []).join("x")} ${layer.format ?? ""}`.toLowerCase();
    return words.every((word) => (/^\d+$/.test(word) ? text.split(/\D+/).includes(word) : text.includes(word)));
  };
  const found = words.length ? contents.layers.filter(fits) : [];
  hits.hidden = !words.length;
  hits.replaceChildren(
    h("p", { role: "status" }, `${found.length} layer${found.length === 1 ? "" : "s"}${found.length > MOST ? `, the first ${MOST}` : ""}`),
    h("ul", {}, found.slice(0, MOST).map((layer) => h("li", {}, anchor(layer.name, "layer", layer.name)))));
};
search.addEventListener("input", find);
document.querySelector(".finder").addEventListener("keydown", (event) => {
  const links = [...hits.querySelectorAll("a")], at = links.indexOf(document.activeElement);
  if (event.key === "Enter" && event.target === search && links.length) location.hash = links[0].getAttribute("href");
  if (event.key === "ArrowDown") links[Math.min(at + 1, links.length - 1)]?.focus();
  if (event.key === "ArrowUp") (links[at - 1] ?? search).focus();
  if (event.key.startsWith("Arrow") && event.key.length > 7 && /Up|Down/.test(event.key)) event.preventDefault();
});
addEventListener("hashchange", () => { hits.hidden = true; search.value = ""; });
addEventListener("pointerdown", (event) => { if (!event.target.closest(".finder")) hits.hidden = true; });

// A link into the page is followed at once, and its numbers when all of the file is there.
show(location.hash, false);
here = location.hash || "#model";
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => { if (depth(location.hash)) show(location.hash, true); });

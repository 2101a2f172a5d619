// The views of a reading. Each has an address; a layer's numbers are read when it is first opened.
const read = (id) => {
  const element = document.getElementById(id);
  return element && JSON.parse(element.textContent);
};
const contents = read("contents");
const places = new Map(contents.layers.map((layer, k) => [layer.name, k]));
const once = (make) => {
  let made = null;
  return () => (made ??= make());
};
const pictures = once(() => read("pictures") ?? []);
const corpus = once(() => {
  const given = read("corpus");
  const bytes = Uint8Array.from(atob(given.ids), (letter) => letter.charCodeAt(0));
  const apart = !given.pieces.some((piece) => /\s/.test(piece)); // tokens of words, without the spaces between
  return { ...given, apart, ids: given.bytes === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer) };
});
const pairs = (flat) => Array.from({ length: (flat?.length ?? 0) / 2 }, (_, k) => [flat[2 * k], flat[2 * k + 1]]);
const opened = new Map();
const layerOf = (name) => {
  if (!opened.has(name)) {
    const layer = read(`layer-${places.get(name)}`);
    for (const bond of layer.bonds) {
      const columns = bond.features, names = Object.keys(columns);
      bond.features = (columns.index ?? []).map((_, k) => Object.fromEntries(names.map((key) => [key, columns[key][k]])));
    }
    opened.set(name, layer);
  }
  return opened.get(name);
};
const address = (...parts) => "#" + parts.map((part) => encodeURIComponent(part)).join("/");
const anchor = (words, ...parts) => h("a", { href: address(...parts) }, words);
const plain = (name) => name.replaceAll("_", " ");
const near = (text) => h("p", { class: "note" }, text);

// What a number stands for, said where it stands.
const KINDS = {
  cut: "It cuts the network in two: each index is one product of two sides, and together they are the whole weight.",
  blocks: "It cuts every block of the weight on its own, with a gauge for each block.",
  terms: "It does not cut the network in two: it sits on three or more cores or lies on a loop. Each index is one term of a sum.",
};
const GAUGES = {
  raw: "The cores as they are stored. Which directions the indices have is arbitrary.",
  canonical: "By singular value decomposition: the indices are orthogonal on both sides, the strongest first.",
  whitened: "Whitened by the corpus: the indices are uncorrelated over its tokens and have one size.",
  varimax: "Whitened, then turned so that each token loads on few indices (varimax).",
  ica: "Whitened, then turned so that the indices are as independent as can be (ICA).",
};
const RUNGS = {
  schmidt: "Schmidt value is the length of the index's term of the weight",
  output: "output error is that of the layer when the index is left out, squared, over its squared output",
  gradient: "gradient attribution is by how much the loss would rise without the index, to first order",
  measured: "measured change of loss is by how much it rose",
};
const SHORT = { schmidt: "Schmidt value", output: "output error", gradient: "gradient attribution", measured: "measured change of loss" };
// The truest rung that was taken of all features, so that they can be ordered by it.
const best = (bond) => Object.keys(RUNGS).reverse().find((rung) => bond.importance?.[rung]?.length
  && bond.features.every((feature) => known(bond.importance[rung][feature.index])));
const trust = (feature) => (known(feature.identified) ? (feature.identified ? "yes" : "no") : null);

const heading = (...words) => h("h2", { tabindex: -1 }, ...words);
const crumbs = (parts) => {
  const way = [["model", ["model"]], ...parts];
  document.querySelector("#way ol").replaceChildren(...way.map(([words, to], k) =>
    h("li", {}, h("a", { href: address(...to), "aria-current": k === way.length - 1 ? "page" : null }, words))));
};

// A layer: its network, its stack, its gauges and its bonds.
let gauge = null;
const drawn = (layer, part) => {
  const text = pictures()[layer[part]];
  return document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
};
const layerView = (name) => {
  const layer = layerOf(name);
  crumbs([[name, ["layer", name]]]);
  const dense = layer.tensorized === false;
  const size = (layer.shape ?? []).reduce((a, b) => a * b, 1);
  const all = contents.layers, at = places.get(name);
  const kinds = [...new Set(layer.bonds.flatMap((bond) => Object.keys(bond.gauges ?? {})))];
  return [
    heading("Layer ", h("span", { class: "name" }, name)),
    steps([["previous layer", all[at - 1]?.name], ["next layer", all[at + 1]?.name]].map(([words, to]) => [words, to && ["layer", to]])),
    facts([
      ["shape, out x in", layer.shape?.join(" x ") ?? null],
      ["form", dense ? "dense, folded for the look only" : layer.format ?? "tensor network"],
      ["stored numbers", known(layer.stored) ? `${layer.stored.toLocaleString("en")} (${number(100 * layer.stored / size)} % of dense)` : null],
      [dense ? "folded as" : "network", layer.network ? h("code", {}, layer.network) : undefined],
    ]),
    known(layer.diagram)
      ? h("div", { class: "pair" },
        figure("The network", `${name} network`, () => drawn(layer, "diagram"),
          { note: "Circles are cores, orange lines are bonds, as wide as the logarithm of their size. Row modes (outputs) point up, column modes (inputs) down." }),
        figure("The stack", `${name} stack`, () => drawn(layer, "floors"),
          { note: `The same network pulled apart: the input enters below and meets core ${layer.sweep.join(", then core ")}. Each floor is a sparse layer; a line that passes one is an identity.` }))
      : near(dense ? "A dense weight has no network to draw. Its spectrum is that of the weight folded at the bond below." : "The network was not recorded."),
    layer.stack?.length ? table("The stack in numbers", ["floor", "core", "out x in", "entries", "carries before", "carries after"], () =>
      layer.stack.map((floor, k) => [String(k), String(floor.core), floor.shape?.join(" x "), floor.nnz?.toLocaleString("en"), floor.before?.join(" "), floor.after?.join(" ")])) : null,
    h("h3", {}, "Bonds"),
    layer.bonds.length ? h("ul", { class: "cards" }, layer.bonds.map((bond) => h("li", {}, h("a", { href: address("bond", name, bond.name), class: "card" },
      h("b", {}, `${bond.name}, ${bond.size ?? bond.values?.length ?? "?"} indices`),
      h("span", {}, `effective rank ${number(bond.effective_rank)}`),
      h("span", {}, `entropy over the largest possible ${number(bond.normalised_entropy)}`),
      h("span", {}, `${bond.features.length} features`))))) : near("This layer has no bond."),
    kinds.length ? gauges(layer, kinds) : null,
  ];
};
const steps = (links) => h("p", { class: "steps" }, links.map(([words, to, rel]) => to && h("a", { href: address(...to), rel }, words)));

const gauges = (layer, kinds) => {
  if (!kinds.includes(gauge)) gauge = layer.bonds.find((bond) => bond.gauge)?.gauge ?? kinds[0];
  if (!kinds.includes(gauge)) gauge = kinds[0];
  const body = h("div", { "aria-live": "polite" });
  const redraw = () => body.replaceChildren(near(GAUGES[gauge] ?? ""), ...layer.bonds.map((bond) => norms(layer, bond)));
  const option = (kind) => h("label", {}, h("input", { type: "radio", name: "gauge", value: kind, checked: kind === gauge,
    change: () => { gauge = kind; redraw(); } }), ` ${kind}`);
  redraw();
  return h("section", { class: "gauges", "aria-label": "gauges" },
    h("h3", {}, "Gauges"),
    near("A gauge is put on a bond with its inverse: the weight stays as it is, the indices become others. What can be read off them holds as far as the gauge is identified, that is found again from other data and seeds."),
    h("fieldset", {}, h("legend", {}, "Gauge"), kinds.map(option)), body);
};
const mixed = (groups) => (groups?.length ? `Any mixture is as good within ${groups.slice(0, 3).map((group) => group.join(", ")).join("; ")}${groups.length > 3 ? ` and ${groups.length - 3} more groups` : ""}.` : "");
const norms = (layer, bond) => {
  const own = bond.gauges?.[gauge];
  if (!own?.norms?.length) return near(`Bond ${bond.name}: not measured in this gauge.`);
  const sure = own.identified, good = sure?.filter(Boolean).length;
  const words = sure ? `${good} of ${sure.length} indices are identified (filled bars; hollow ones are not).` : "How well the indices are identified was not measured.";
  const kind = own.norms.map((_, k) => (sure && !sure[k] ? "hollow" : ""));
  const rows = [{ name: "length of each index's term of the weight", values: own.norms, kind,
    tip: own.norms.map((_, k) => (sure ? (sure[k] ? ", identified" : ", not identified") : "")) }];
  if (own.stability?.some(known)) rows.push({ name: "stability over halves of the data and seeds, 0 to 1", values: own.stability, kind });
  return figure(`Bond ${bond.name} in the ${gauge} gauge`, `${layer.name} ${bond.name} ${gauge}`, () => bars(rows, "index"), { note: [words, own.why, mixed(own.groups)].filter(Boolean).join(" ") });
};

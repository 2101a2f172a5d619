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

// A bond: its spectrum against the nulls, the ladder of importance, its features.
const hidden = new Set();
let logarithms = true, sorting = "importance", onlySure = false;
const toggle = (words, on, turn) => h("label", { class: "switch" }, h("input", { type: "checkbox", checked: on, change: (event) => turn(event.target.checked) }), ` ${words}`);
const bondView = (name, which) => {
  const layer = layerOf(name), bond = layer.bonds.find((other) => other.name === which);
  crumbs([[name, ["layer", name]], [`bond ${which}`, ["bond", name, which]]]);
  return [
    heading(`Bond ${which} of `, h("span", { class: "name" }, name)),
    steps(layer.bonds.length > 1 ? layer.bonds.filter((other) => other !== bond).map((other) => [`bond ${other.name}`, ["bond", name, other.name]]) : []),
    bond.kind && near(KINDS[bond.kind] ?? bond.kind),
    h("div", { class: "pair" },
      bond.values?.length ? figure("Spectrum", `${name} ${which} spectrum`, () => spectrum(bond, logarithms, hidden), {
        note: bond.shown,
        controls: (redraw) => [
          toggle("logarithmic", logarithms, (on) => { logarithms = on; redraw(); }),
          bands(bond).map(({ name: null_ }) => toggle(null_, !hidden.has(null_), (on) => { hidden[on ? "delete" : "add"](null_); redraw(); })),
        ],
      }) : near("The spectrum was not measured."),
      h("div", {},
        facts([
          ["indices (rank)", bond.size ?? null],
          ["between cores", bond.cores?.join(" and ")],
          ["entropy of the squared values, in nats", bond.entropy ?? null],
          ["that, over the largest possible", bond.normalised_entropy ?? null],
          ["effective rank, the exponential of the entropy", bond.effective_rank ?? null],
          ["features are read in the gauge", bond.gauge],
        ]),
        nullTable(bond))),
    bond.values?.length ? table("The spectrum in numbers", ["place", "value", "over the root sum of squares", ...bands(bond).map((null_) => `${null_.name}, low to high`)], () =>
      bond.values.map((value, k) => [String(k + 1), value, shares(bond)[k], ...bands(bond).map((null_) => `${number(null_.low[k])} to ${number(null_.high[k])}`)])) : null,
    ladder(name, bond),
    features(name, bond),
  ];
};
const nullTable = (bond) => {
  if (!bond.nulls?.length) return near("No null was measured, so the spectrum stands alone.");
  const row = (null_) => h("tr", {}, h("th", { scope: "row" }, null_.name),
    ...(null_.applies === false
      ? [h("td", { colspan: 3 }, `does not apply${null_.why ? `: ${null_.why}` : ""}`)]
      : [h("td", {}, null_.entropy ? `${number(null_.entropy[0], 4)} to ${number(null_.entropy[1], 4)}` : MISSING),
        h("td", {}, number(null_.distance ?? null)), h("td", {}, number(null_.p ?? null))]));
  const whys = bond.nulls.filter((null_) => null_.applies !== false && null_.why);
  return h("div", { class: "scroll" }, h("table", { class: "bonds" },
    h("caption", {}, "The bond's entropy against that of each null"),
    h("thead", {}, h("tr", {}, ["null", "its entropy, 95 % of draws", "distance in its standard deviations", "p"].map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, bond.nulls.map(row))),
  near("Distance is the bond's entropy less the mean of the draws. p is the share of draws that are as concentrated as the bond or more, the bond counted among them."),
  whys.map((null_) => near(`${null_.name}: ${null_.why}`)));
};
const ladder = (name, bond) => {
  const rungs = Object.keys(RUNGS).filter((rung) => bond.importance?.[rung]?.some(known));
  const missing = Object.keys(RUNGS).filter((rung) => !rungs.includes(rung)).map((rung) => SHORT[rung]);
  const title = h("h3", {}, "Importance, from cheap to true");
  if (!rungs.length) return [title, near("Not measured.")];
  const agreement = bond.importance.agreement ?? {};
  const named = (rung) => SHORT[rung] + (known(agreement[rung]) ? `, agreement ${number(agreement[rung])}` : "");
  const taken = bond.importance.measured?.filter(known).length ?? 0;
  const among = bond.importance.measured_in_all;
  const note = [
    `The ${rungs.map((rung) => RUNGS[rung]).join("; the ")}.`,
    taken && taken < bond.importance.measured.length ? `It was measured for ${taken} of the ${bond.importance.measured.length} indices.` : "",
    missing.length ? `Not measured here: ${missing.join(", ")}.` : "",
    rungs.some((rung) => known(agreement[rung]))
      ? `Agreement is the rank correlation with the measured change of loss, in size, over ${among ? `${among} indices of the whole model` : "the indices"}.`
      : "How well a rung predicts the measured change of loss was not measured.",
  ].filter(Boolean).join(" ");
  return [
    figure("Importance, from cheap to true", `${name} ${bond.name} importance`,
      () => bars(rungs.map((rung) => ({ name: named(rung), values: bond.importance[rung] })), "index"), { note }),
    table("Importance in numbers", ["index", ...rungs.map((rung) => SHORT[rung])], () =>
      bond.importance[rungs[0]].map((_, k) => [String(k), ...rungs.map((rung) => bond.importance[rung][k])])),
  ];
};

const SORTS = {
  importance: (bond) => (feature) => -Math.abs(bond.importance?.[best(bond)]?.[feature.index] ?? 0),
  density: () => (feature) => feature.density ?? Infinity,
  stability: () => (feature) => -(feature.stability ?? -Infinity),
  index: () => (feature) => feature.index,
};
const ordered = (bond) => {
  const key = SORTS[sorting](bond);
  return bond.features.filter((feature) => !onlySure || feature.identified)
    .sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.index - b.index));
};
const features = (name, bond) => {
  if (!bond.features.length) return [h("h3", {}, "Features"), near("No features were read on this bond.")];
  const list = h("ol", { class: "cards features" });
  const count = h("output", {});
  const redraw = () => {
    const found = ordered(bond);
    list.replaceChildren(...found.map((feature) => h("li", {}, card(name, bond, feature))));
    count.textContent = `${found.length} of ${bond.features.length} features`;
  };
  const rung = best(bond);
  const words = { importance: `importance (${rung ? SHORT[rung] : MISSING}), largest first`, density: "density, sparsest first", stability: "stability, largest first", index: "index" };
  const select = h("select", { id: "sorting", change: (event) => { sorting = event.target.value; redraw(); } },
    Object.entries(words).map(([key, text]) => h("option", { value: key, selected: key === sorting }, text)));
  redraw();
  return h("section", { "aria-label": "features" }, h("h3", {}, "Features"),
    near("Each index of the bond as a number for every token of the corpus. The small picture is its histogram, with logarithmic heights; the words are the tokens on which it is largest."),
    h("p", { class: "controls" }, h("label", {}, "Sort by ", select), toggle("identified only", onlySure, (on) => { onlySure = on; redraw(); }), count), list);
};
const visible = (text) => (text ?? "").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
const pieceAt = (position) => visible(corpus().pieces[corpus().ids[position]] ?? "?");
const card = (name, bond, feature) => {
  const rung = best(bond);
  const tokens = [...new Set(pairs(feature.examples).map(([position]) => pieceAt(position).trim() || pieceAt(position)))].slice(0, 4);
  return h("a", { href: address("feature", name, bond.name, feature.index), class: "card" },
    h("b", {}, `index ${feature.index}`, feature.identified === false ? h("small", {}, " not identified") : null),
    feature.histogram?.counts?.length ? sketch(feature.histogram) : null,
    h("span", { class: "tokens" }, tokens.length ? tokens.map((token) => h("i", {}, token)) : "no example"),
    h("span", {}, `importance ${number(rung ? bond.importance[rung][feature.index] ?? null : null)}`),
    h("span", {}, `density ${number(feature.density ?? null)}, stability ${number(feature.stability ?? null)}`));
};

// An index: where in the corpus it is large, and what it does.
let logCounts = true;
const featureView = (name, which, index) => {
  const bond = layerOf(name).bonds.find((other) => other.name === which);
  const feature = bond.features.find((other) => String(other.index) === index);
  crumbs([[name, ["layer", name]], [`bond ${which}`, ["bond", name, which]], [`index ${index}`, ["feature", name, which, index]]]);
  const about = beside(bond, feature);
  const rungs = Object.keys(RUNGS).filter((rung) => known(bond.importance?.[rung]?.[feature.index]));
  return [
    heading(`Index ${index} of bond ${which} of `, h("span", { class: "name" }, name)),
    steps([["previous index", about.before, "prev"], ["next index", about.after, "next"]].map(([words, to, rel]) => [words, to && ["feature", name, which, to.index], rel])),
    h("p", { class: "hint" }, `Number ${about.at + 1} of ${about.count} by ${sorting}; arrow keys turn the pages, Escape goes up.`),
    feature.identified === false ? near("This index is not identified: another seed or half of the data gives another direction, so what is seen here may be an accident of the gauge.") : null,
    h("div", { class: "pair" },
      facts([
        ["gauge", bond.gauge], ["identified", trust(feature)],
        ["stability over halves and seeds, 0 to 1", feature.stability ?? null],
        ["density: the share of tokens that carry it, (E f\u00b2)\u00b2 / E f\u2074; of a Gaussian 1/3", feature.density ?? null],
        ["scale (rms over the corpus)", feature.scale ?? null], ["skew", feature.skew ?? null],
        ["entropy of its tokens", feature.token_entropy ?? null],
        ["share of the layer's output", feature.share], ["share of its term that it holds", feature.pure],
        ...rungs.map((rung) => [SHORT[rung], bond.importance[rung][feature.index]]),
      ]),
      feature.histogram?.counts?.length ? figure("Histogram", `${name} ${which} ${index} histogram`, () => histogram(feature.histogram, logCounts, room(520)), {
        note: "Over all tokens of the corpus. The first and the last bar also hold what lies beyond.",
        controls: (redraw) => toggle("logarithmic", logCounts, (on) => { logCounts = on; redraw(); }),
      }) : near("Histogram: not measured.")),
    h("h3", {}, "Where it is largest"),
    feature.examples?.length ? [
      near(feature.around ? "The token in the frame has the value at the left; the shade of each token is its own value, over the largest." : "The token in the frame has the value at the left; the values around it were not kept."),
      h("ol", { class: "examples" }, pairs(feature.examples).map((example, k) => excerpt(example, feature.around, k)))] : near("No example was kept."),
    feature.lowest?.length ? h("details", {}, h("summary", {}, "Where it is lowest"),
      h("ol", { class: "examples" }, pairs(feature.lowest).map((example) => excerpt(example)))) : null,
    h("div", { class: "pair" }, tokenTable(feature), logits(feature)),
  ];
};
const beside = (bond, feature) => {
  const list = ordered(bond), all = list.includes(feature) ? list : bond.features;
  const at = all.indexOf(feature);
  return { at, count: all.length, before: all[at - 1], after: all[at + 1] };
};
const BEFORE = 16, AFTER = 7, SHADES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const excerpt = ([position, value], around, k) => {
  const { ids, length } = corpus(), start = position - position % length, end = Math.min(start + length, ids.length);
  const from = Math.max(start, position - BEFORE), to = Math.min(end, position + AFTER + 1);
  const tokens = Array.from({ length: to - from }, (_, n) => {
    const at = from + n, text = pieceAt(at);
    const letter = around?.[k * (BEFORE + 1 + AFTER) + at - position + BEFORE];
    const part = letter ? SHADES.indexOf(letter) / 63 : 0;
    const style = part > 0.03 ? `--a:${part.toFixed(2)}` : null;
    if (at === position) return h("mark", { style: style ?? "--a:1", "data-tip": `token ${at}: ${number(value, 4)}` }, text);
    return style ? h("span", { class: "lit", style, "data-tip": `token ${at}: ${number(part, 2)} of the largest` }, text) : text;
  });
  return h("li", {}, h("b", {}, number(value)), h("p", {}, from > start ? "\u2026" : "", corpus().apart ? tokens.flatMap((token) => [token, " "]) : tokens, to < end ? "\u2026" : ""),
    h("small", {}, `window ${Math.floor(position / length) + 1}, token ${position % length + 1}`));
};
const lengths = (title, rows, words) => h("table", { class: "lengths" }, h("caption", {}, title),
  h("thead", { class: "unseen" }, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col" }, words))),
  h("tbody", {}, rows.map(([text, value]) => {
    const part = Math.abs(value) / Math.max(...rows.map(([, other]) => Math.abs(other)), 1e-30);
    return h("tr", {}, h("th", { scope: "row" }, h("code", {}, visible(text))), h("td", {}, number(value)),
      h("td", { "aria-hidden": "true", class: "wide" }, h("i", { class: "bar", style: `width:${(100 * part).toFixed(0)}%` })));
  })));
const tokenTable = (feature) => {
  const rows = pairs(feature.tokens).map(([place, count]) => [corpus().pieces[place] ?? "?", count]);
  return h("div", {}, h("h3", {}, "Tokens"), rows.length
    ? [near("How often each token is among the places where the feature is largest."), lengths("tokens at its peaks", rows, "times")] : near("Token statistics: not measured."));
};
const logits = (feature) => {
  const { up, down } = feature.logits ?? {};
  const has = up?.length || down?.length;
  return h("div", {}, h("h3", {}, "Direct effect on the logits"), has
    ? [near("What the feature's direction in the output adds to the logits of tokens, without what later layers make of it."),
      h("div", { class: "both" }, up?.length ? lengths("raises most", pairs(up), "change of the logit") : null, down?.length ? lengths("lowers most", pairs(down), "change of the logit") : null)]
    : near(feature.why_no_logits ?? "Not measured."));
};

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

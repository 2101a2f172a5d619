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

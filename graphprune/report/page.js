"use strict";
/* Draws the report from the JSON in the page. Text only ever enters as text nodes: names of models are not trusted. */

const D = JSON.parse(document.getElementById("data").textContent);
const R = D.record;
const SVG = "http://www.w3.org/2000/svg";

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined));
  return node;
}
function svg(tag, props, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props || {})) node.setAttribute(key, value);
  node.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined));
  return node;
}
const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
const percent = (x, digits = 1) => x === null || x === undefined ? "" : (100 * x).toFixed(digits) + " %";
function count(n) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(n) >= size) return three(n / size) + " " + unit;
  }
  return three(n);
}
function three(x) {
  if (x === null || x === undefined) return "";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}
const ms = x => x === null || x === undefined ? "" : three(x) + " ms";
const times = x => x.toFixed(2) + " ×";
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = k => `hsl(${Math.round((k * 137.508) % 360)} ${k % 2 ? 52 : 62}% ${dark.matches ? 58 : 46}%)`;

function table(head, rows, numbers = []) {
  const cells = (tag, row) => row.map((c, k) => el(tag, {class: numbers.includes(k) ? "num" : null,
    scope: tag === "th" ? "col" : null}, c ?? ""));
  return el("table", {}, el("thead", {}, el("tr", {}, cells("th", head))),
    el("tbody", {}, rows.map(row => el("tr", {}, cells("td", row)))));
}
const name = text => el("span", {class: "name"}, text);
function swatch(k) {
  const dot = el("span", {class: "swatch", "aria-hidden": "true"});
  dot.style.background = colour(k);
  return dot;
}
function section(id, title, ...content) {
  const details = el("details", {open: true}, el("summary", {}, el("h2", {id: id + "-title"}, title)), content);
  document.getElementById("main").append(el("section", {id, "aria-labelledby": id + "-title"}, details));
  const link = el("a", {href: "#" + id, onclick: () => { details.open = true; }}, title);
  document.getElementById("nav").append(el("li", {}, link));
  return details;
}
function keys(...pairs) {
  return el("div", {class: "keys"}, pairs.map(([kind, text]) => el("span", {}, el("i", {class: "k-" + kind}), text)));
}

/* ---- head ---- */

function speedWords() {
  if (R.speedup === null) return "It was not timed.";
  const noise = `noise ± ${percent(R.noise_band)}`;
  if (Math.abs(R.speedup - 1) <= R.noise_band) return `No difference in speed beyond noise (${times(R.speedup)}, ${noise}).`;
  return `${R.speedup > 1 ? "Faster" : "Slower"} than the dense model by ${times(R.speedup)} (${noise}), measured in turn.`;
}
function head() {
  const share = key => R.before[key] ? R.after[key] / R.before[key] : null;
  const last = R.divergence && R.divergence.after[0];
  document.getElementById("headline").textContent =
    `${count(R.before.parameters)} parameters became ${count(R.after.parameters)}. ${speedWords()}`;
  const certain = R.speedup !== null && Math.abs(R.speedup - 1) > R.noise_band;
  const figures = [
    R.speedup === null ? null : [certain ? times(R.speedup) : "≈ 1 ×", certain ? "as fast" : "speed, within noise"],
    share("macs") === null ? null : [percent(share("macs"), 0), "of the MACs kept"],
    share("parameters") === null ? null : [percent(share("parameters"), 0), "of the parameters kept"],
    !last ? null : last.agree === null ? [percent(last.relative), "error of the output"]
      : [percent(last.agree), "of answers unchanged"],
    R.proof ? [String(R.proof.groups), R.proof.passed ? "groups proven" : "groups, proof failed"] : null,
  ];
  document.getElementById("figures").append(...figures.filter(Boolean).map(([big, small]) =>
    el("div", {class: "figure"}, el("b", {}, big), el("span", {}, small))));
  foot();
}
function foot() {
  document.getElementById("foot").textContent =
    `Written by graphprune ${D.version} for ${D.output}. The page is one file and loads nothing.`;
}

/* ---- summary ---- */

function summary() {
  const kept = (a, b) => a && b !== null && b !== undefined ? percent(b / a) : "";
  const line = (title, key, form) => R.before[key] === null && R.after[key] === null ? null
    : [title, form(R.before[key]), form(R.after[key]), kept(R.before[key], R.after[key])];
  const rows = [
    line("parameters", "parameters", count), line("multiply-accumulates", "macs", count),
    line("bytes of weights", "bytes", count), line("peak memory", "peak_memory_mb", x => x === null ? "" : three(x) + " MB"),
    line("latency", "latency_ms", ms),
  ].filter(Boolean);
  const facts = [el("li", {}, speedWords())];
  const proof = R.proof;
  if (proof) {
    facts.push(el("li", {class: proof.passed ? "ok" : "no"},
      `${proof.passed ? "✓" : "✗"} Permuting all ${proof.groups} groups changes the output by `
      + `${proof.max_relative_error.toExponential(1)} (allowed ${proof.tolerance.toExponential(0)}`
      + `, rounding alone ${proof.rounding_noise.toExponential(0)})`));
  }
  const once = new Map(R.checks.map(c => [c.name + (c.passed ? "" : c.detail), c]));
  for (const c of once.values()) {
    facts.push(el("li", {class: c.passed ? "ok" : "no"}, `${c.passed ? "✓" : "✗"} ${c.name}`,
      c.detail ? el("span", {class: "soft"}, " " + c.detail) : null));
  }
  if (R.bypass && R.bypass.length) {
    facts.push(el("li", {}, `${R.bypass.length} residual branch${R.bypass.length > 1 ? "es" : ""} bypassed: `,
      R.bypass.map((b, k) => [k ? ", " : "", name(b)])));
  }
  if (R.cleanup && (R.cleanup.nodes || R.cleanup.constants)) {
    facts.push(el("li", {}, `Clean-up: ${R.cleanup.nodes} nodes and ${R.cleanup.constants} constants less, outputs the same`));
  }
  if (!R.checks.length) facts.push(el("li", {}, "Not run: checks were switched off."));
  const said = [...R.assumed, ...(R.calibration ? R.calibration.assumed : []), R.remark].filter(Boolean);
  section("summary", "Summary",
    el("div", {class: "narrow"}, table(["", "before", "after", "kept"], rows, [1, 2, 3])),
    el("h3", {}, "What was done and checked"), el("ul", {class: "plain"}, facts),
    said.length ? [el("h3", {}, "What was assumed"), el("ul", {class: "plain soft"}, said.map(t => el("li", {}, t)))] : null);
}

/* ---- widths ---- */

function showGroup(k) {
  const box = document.getElementById("find");
  if (!box) return;
  box.closest("details").open = true;
  box.value = R.groups[k].name;
  box.dispatchEvent(new Event("input"));
  document.getElementById("graph").scrollIntoView();
  box.focus({preventScroll: true});
}
function widths() {
  if (!R.groups.length) return;
  const top = Math.max(...R.groups.map(g => g.size));
  const rows = R.groups.map((g, k) => {
    const before = el("i", {class: "b"}), after = el("i", {class: "a"}), number = el("span", {class: "num"});
    const row = el("div", {},
      el("button", {class: "link name", type: "button", title: "show in the graph", onclick: () => showGroup(k)},
        swatch(k), g.name),
      el("div", {class: "track"}, before, after), number);
    return {row, before, after, number, g};
  });
  const told = el("p", {}), list = el("div", {class: "bars"}, rows.map(r => r.row));
  const none = el("p", {class: "soft", hidden: true}, "No group has this in its name.");
  let share = true, only = false, wanted = "";
  const draw = () => {
    let shown = 0;
    const gone = R.groups.filter(g => g.kept < g.size).length;
    told.replaceChildren(...planWords(), `${gone} of ${R.groups.length} channel groups gave up indices, `
      + `${count(sum(R.groups, g => g.size - g.kept))} of ${count(sum(R.groups, g => g.size))} in all.`);
    for (const {row, before, after, number, g} of rows) {
      number.replaceChildren(`${g.size} → ${g.kept} `, el("span", {class: "soft"}, percent(g.kept / g.size, 0)));
      before.style.width = 100 * (share ? 1 : g.size / top) + "%";
      after.style.width = 100 * g.kept / (share ? g.size : top) + "%";
      row.className = "bar" + (g.kept === g.size ? " whole" : "");
      row.hidden = (only && g.kept === g.size) || !g.name.toLowerCase().includes(wanted);
      row.style.display = row.hidden ? "none" : "";
      shown += !row.hidden;
    }
    none.hidden = shown > 0;
  };
  const toggle = (text, flip) => {
    const button = el("button", {type: "button", "aria-pressed": "false"}, text);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on)); flip(on); draw();
    });
    return button;
  };
  document.addEventListener("plan", draw);
  section("widths", "Widths", told,
    el("div", {class: "tools"}, planChoice(),
      el("input", {type: "search", placeholder: "Filter groups", "aria-label": "Filter groups",
        oninput: e => { wanted = e.target.value.trim().toLowerCase(); draw(); }}),
      toggle("to scale", on => { share = !on; }), toggle("only changed", on => { only = on; })),
    el("div", {class: R.groups.length > 16 ? "scroll" : null}, list, none));
  draw();
}

/* ---- time ---- */

function pairs(rows, top) {
  return el("div", {class: "bars pair"}, rows.map(([label, before, after]) => {
    const b = el("i", {class: "b"}), a = el("i", {class: "a"});
    b.style.width = 100 * before / top + "%";
    a.style.width = 100 * after / top + "%";
    return el("div", {class: "bar"}, label, el("div", {class: "track"}, b, a),
      el("span", {class: "num"}, `${three(before)} → ${three(after)} ms`));
  }));
}
function time() {
  const P = D.profile;
  if (!P) {
    if (D.profile_said) section("time", "Time", el("p", {class: "soft"}, D.profile_said));
    return;
  }
  const total = key => sum(P.operators, o => o[key]);
  const top = Math.max(...P.operators.flatMap(o => [o.before_ms, o.after_ms]), 1e-9);
  const nodes = [...P.nodes].sort((x, y) => (y.before_ms + y.after_ms) - (x.before_ms + x.after_ms));
  const rows = nodes.map(n => [name(n.name), n.operator, three(n.before_ms), three(n.after_ms),
    n.after_ms > 0 ? times(n.before_ms / n.after_ms) : ""]);
  if (P.rest.before_ms || P.rest.after_ms) {
    rows.push([el("span", {class: "soft"}, "all nodes that only one of the models has"), "",
      three(P.rest.before_ms), three(P.rest.after_ms), ""]);
  }
  section("time", "Time",
    el("p", {}, `Where a run spends its time, from onnxruntime’s profiler: ${three(total("before_ms"))} ms in nodes before, `
      + `${three(total("after_ms"))} ms after (medians of ${P.runs} runs of both models in turn). The profiler itself takes `
      + `time, so sums may be above the latency in the summary.`),
    keys(["before", "before"], ["after", "after"]),
    el("h3", {}, "By operator"), pairs(P.operators.map(o => [el("span", {class: "name"}, o.operator), o.before_ms, o.after_ms]), top),
    el("h3", {}, "By node"),
    el("p", {class: "soft"}, "Nodes as onnxruntime runs them: fused ones have the name of one of the nodes they are made of."),
    el("div", {class: "scroll wide"}, table(["node", "operator", "before, ms", "after, ms", "speed"], rows, [2, 3, 4])));
}

/* ---- curves and points ---- */

function frame(width, height, left, bottom) {
  const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"});
  root.append(svg("line", {class: "axis", x1: left, y1: height - bottom, x2: width, y2: height - bottom}),
    svg("line", {class: "axis", x1: left, y1: 8, x2: left, y2: height - bottom}));
  return root;
}
function label(x, y, text, anchor = "start") {
  return svg("text", {x, y, "text-anchor": anchor}, text);
}
function describe(root, text) {
  root.setAttribute("aria-label", text);
  root.prepend(svg("title", {}, text));
}
function curve(c) {
  const W = 216, H = 128, left = 4, bottom = 20;
  const values = c.losses || c.errors, top = Math.max(...values, 1e-12);
  const x = w => left + (W - left) * w / c.size, y = e => H - bottom - (H - bottom - 14) * e / top;
  const root = frame(W, H, left, bottom);
  const line = c.widths.map((w, k) => `${k ? "L" : "M"}${x(w).toFixed(1)} ${y(values[k]).toFixed(1)}`).join("");
  const floor = H - bottom;
  root.append(svg("path", {class: "area", d: `${line}L${x(c.widths.at(-1))} ${floor}L${x(c.widths[0])} ${floor}Z`}),
    svg("path", {class: "curve", d: line}),
    svg("line", {class: "guide", x1: x(c.kept), y1: 14, x2: x(c.kept), y2: floor}),
    svg("circle", {class: "dot", cx: x(c.kept), cy: y(at(c.widths, values, c.kept)), r: 4}),
    label(left + 4, 10, three(top)), label(W, H - 6, String(c.size), "end"), label(left, H - 6, "0"));
  const words = `${c.group}: error ${three(at(c.widths, values, c.kept))} at ${c.kept} of ${c.size}`;
  describe(root, words);
  return el("figure", {}, root, el("figcaption", {}, name(c.group), ` ${c.kept} of ${c.size}`));
}
function at(xs, ys, x) {
  for (let k = 1; k < xs.length; k++) {
    if ((xs[k - 1] - x) * (xs[k] - x) <= 0) {
      const span = xs[k] - xs[k - 1];
      return span ? ys[k - 1] + (ys[k] - ys[k - 1]) * (x - xs[k - 1]) / span : ys[k];
    }
  }
  return ys.at(-1);
}
function curves() {
  if (!R.curves || !R.curves.length) return;
  const kept = Object.fromEntries(R.groups.map(g => [g.name, g]));
  const all = R.curves.filter(c => kept[c.group] && c.widths.length > 1)
    .map(c => ({...c, size: kept[c.group].size}));
  if (!all.length) return;
  const losses = all.some(c => c.losses);
  const box = el("div", {class: "multiples"});
  const more = el("button", {type: "button"}, "");
  const step = 24, drawn = c => curve({...c, kept: kept[c.group].kept});
  document.addEventListener("plan", () => box.replaceChildren(...all.slice(0, box.childElementCount).map(drawn)));
  const add = () => {
    const from = box.childElementCount;
    box.append(...all.slice(from, from + step).map(drawn));
    more.hidden = box.childElementCount >= all.length;
    more.style.display = more.hidden ? "none" : "";
    more.textContent = `Show more (${all.length - box.childElementCount} left)`;
  };
  more.addEventListener("click", add);
  add();
  section("curves", "Error against width",
    el("p", {}, losses
      ? "What the outputs lose when a group alone keeps so many indices: from trials of single groups, bent along the error of its layers."
      : "What fraction of their outputs’ energy the layers that read a group lose when it keeps so many indices and they are fitted anew."),
    keys(["after", losses ? "loss" : "error"], ["accent", "what was kept"]), box, el("div", {class: "tools"}, more));
}
function chart(points, xText, yText, line) {
  const W = innerWidth < 640 ? 340 : 640, H = innerWidth < 640 ? 230 : 300, left = 52, bottom = 36;
  const xs = points.map(p => p.x), ys = points.map(p => p.y);
  const lowX = Math.min(...xs), highX = Math.max(...xs), highY = Math.max(...ys, 1e-12);
  const x = v => left + 14 + (W - left - 70) * (highX > lowX ? (v - lowX) / (highX - lowX) : .5);
  const y = v => H - bottom - (H - bottom - 20) * v / highY;
  const root = frame(W, H, left, bottom);
  for (let k = 0; k <= 4; k++) {
    const v = highY * k / 4;
    root.append(svg("line", {class: "axis", x1: left, x2: W, y1: y(v), y2: y(v)}), label(left - 8, y(v) + 4, three(v), "end"));
  }
  if (line) root.append(svg("path", {class: "curve", d: points.filter(p => !p.beaten).map((p, k) => `${k ? "L" : "M"}${x(p.x)} ${y(p.y)}`).join("")}));
  for (const p of points) {
    root.append(svg("circle", {class: p.beaten ? "dot beaten" : "dot", cx: x(p.x), cy: y(p.y), r: 5}, svg("title", {}, p.text)));
    if (p.tick) root.append(label(x(p.x), H - bottom + 16, p.tick, "middle"));
  }
  root.append(label(left, 6, yText), label(W, H - 2, xText, "end"));
  describe(root, `${yText} against ${xText}: ${points.map(p => p.text).join("; ")}`);
  return root;
}
function quality() {
  const apart = R.divergence;
  if (!apart || !apart.stages.length || !apart.stages.at(-1).outputs.length) {
    if (R.evaluation) section("quality", "Quality", metric());
    return;
  }
  const rows = apart.stages.flatMap(s => s.outputs.map(o => [name(o.output), s.stage, three(o.kl), percent(o.agree),
    o.cosine.toFixed(4), percent(o.relative)]));
  const first = apart.stages.at(-1).outputs[0];
  const key = first.kl === null ? "relative" : "kl", title = key === "kl" ? "KL divergence, nats" : "relative error";
  const points = apart.stages.map((s, k) => [s.stage, s.outputs.find(o => o.output === first.output), k])
    .filter(([, o]) => o && o[key] !== null)
    .map(([stage, o, k]) => ({x: k, y: o[key], text: `${stage}: ${three(o[key])}`, tick: String(k + 1)}));
  section("quality", "Quality",
    el("p", {}, `How far the outputs are from the dense model’s, ${apart.held_back ? "on samples held back" : "on the samples it was calibrated on"}, stage by stage.`,
      apart.damaged ? el("strong", {class: "no"}, " The outputs are damaged.") : null),
    el("div", {class: "wide"}, table(["output", "stage", "KL", "same answer", "cosine", "relative error"], rows, [2, 3, 4, 5])),
    points.length > 1 ? el("figure", {class: "chart"}, chart(points, "stage", title, true),
      el("figcaption", {}, `${first.output}: ${points.map(p => `${p.tick} ${p.text.split(":")[0]}`).join(", ")}`)) : null,
    metric());
}
function metric() {
  const e = R.evaluation;
  if (!e) return null;
  const moments = [["before", "before"], ["before_repair", "before repair"], ["after", "after"]].filter(([k]) => e[k]);
  const names = [...new Set(moments.flatMap(([k]) => Object.keys(e[k])))];
  return [el("h3", {}, "Your metric: " + e.metric),
    e.error ? el("p", {class: "no"}, e.error) : null,
    names.length ? table(["", ...moments.map(m => m[1])], names.map(n => [n, ...moments.map(([k]) => three(e[k][n]))]),
      moments.map((_, k) => k + 1)) : null];
}
function pareto() {
  if (!R.pareto || !R.pareto.length) return;
  const timed = R.pareto.every(p => p.speedup !== null && p.speedup !== undefined);
  const key = timed ? "speedup" : "macs";
  const own = [...R.pareto].filter(p => p.divergence !== null && p.divergence !== undefined).sort((a, b) => a[key] - b[key]);
  const points = own.map(p => ({x: p[key], y: p.divergence, beaten: !p.front, tick: timed ? p.speedup.toFixed(2) : count(p.macs),
    text: `${timed ? times(p.speedup) : count(p.macs) + " MACs"}: divergence ${three(p.divergence)}`}));
  const metrics = [...new Set(R.pareto.flatMap(p => Object.keys(p.metric || {})))];
  const rows = [...R.pareto].sort((a, b) => a[key] - b[key]).map(p => [timed ? times(p.speedup) : "", p.macs ? count(p.macs) : "",
    ms(p.latency_ms), three(p.divergence), ...metrics.map(m => three((p.metric || {})[m])), name(p.plan), p.front ? "" : "beaten"]);
  section("pareto", "Pareto",
    el("p", {}, "What more speed costs: every point is a plan; those on the line are beaten by no other."),
    points.length > 1 ? el("figure", {class: "chart"}, chart(points, timed ? "speed, times dense" : "MACs", "divergence", true)) : null,
    el("div", {class: "wide"}, table(["speed", "MACs", "latency", "divergence", ...metrics, "plan", ""], rows,
      [0, 1, 2, 3, ...metrics.map((_, k) => 4 + k)])));
}

/* ---- pins ---- */

function pins() {
  const reasons = new Map();
  for (const p of R.pins) {
    const [reason] = p.reason.split(" [");
    if (!reasons.has(reason)) reasons.set(reason, []);
    reasons.get(reason).push(p);
  }
  const ranked = [...reasons].sort((a, b) => sum(b[1], p => p.elements) - sum(a[1], p => p.elements));
  const rows = ranked.map(([reason, found]) => {
    const largest = found.reduce((a, b) => b.elements > a.elements ? b : a);
    return [reason, String(found.length), name(largest.name)];
  });
  const all = R.pins.map(p => [name(p.name), p.reason, count(p.elements)]);
  section("pins", "Pinned",
    el("p", {}, `${percent(R.coverage)} of the weight elements lie on a channel group. The rest stays as it is, for these reasons.`),
    rows.length ? el("div", {}, table(["reason", "weight axes", "for example"], rows, [1])) : null,
    R.border && R.border.options ? el("p", {}, `${percent(R.border.coverage)} would, if inputs and outputs may change: `,
      el("code", {}, R.border.options)) : null,
    all.length ? el("details", {}, el("summary", {}, "All pinned axes"),
      el("div", {class: "scroll wide"}, table(["weight and axis", "reason", "elements"], all, [2]))) : null);
}

/* ---- start ---- */

function start() {
  if (R.plans) { curveHead(); curveSummary(); pareto(); widths(); curves(); pins(); }
  else { head(); summary(); widths(); time(); curves(); quality(); pareto(); pins(); }
  if (D.graph && D.graph.nodes.length) drawGraph();
  const closed = [];
  addEventListener("beforeprint", () => {
    for (const d of document.querySelectorAll("details:not([open])")) { closed.push(d); d.open = true; }
  });
  addEventListener("afterprint", () => { while (closed.length) closed.pop().open = false; });
}

/* A page about a whole curve: the dense model, all plans, and the widths of one of them, which a reader chooses. */

function takePlan(k) {
  R.plan = k;
  R.groups.forEach((g, i) => { g.kept = R.plans[k].kept[i]; });
  const out = new Set(R.plans[k].out);
  D.graph.nodes.forEach((n, i) => { n.o = out.has(i); });
}
function planWords() {
  if (!R.plans) return [];
  const plan = R.plans[R.plan];
  const gone = plan.bypass.length ? ` ${plan.bypass.length} residual branch${plan.bypass.length > 1 ? "es" : ""} bypassed,` : "";
  return ["By ", name(plan.plan), `:${gone} `];
}
function planChoice() {
  if (!R.plans) return null;
  const choice = el("select", {id: "plan", "aria-label": "Plan whose widths are shown"},
    R.plans.map((p, k) => el("option", {value: String(k), selected: k === R.plan}, p.plan)));
  choice.addEventListener("change", () => { takePlan(Number(choice.value)); document.dispatchEvent(new Event("plan")); });
  return choice;
}
function curveHead() {
  takePlan(R.plans.length - 1);
  const shares = R.pareto.map(p => p.macs / R.before.macs).filter(Number.isFinite);
  const speeds = R.pareto.map(p => p.speedup).filter(s => s !== null);
  const front = R.pareto.filter(p => p.front).length;
  document.getElementById("headline").textContent =
    `${R.plans.length} plans for a model of ${count(R.before.parameters)} parameters, ${front} of them beaten by no other.`;
  const figures = [
    [String(R.plans.length), "plans"],
    shares.length ? [percent(Math.min(...shares), 0), "of the MACs kept at least"] : null,
    speeds.length ? [times(Math.max(...speeds)), "as fast at most"] : null,
  ];
  document.getElementById("figures").append(...figures.filter(Boolean).map(([big, small]) =>
    el("div", {class: "figure"}, el("b", {}, big), el("span", {}, small))));
  foot();
}
function curveSummary() {
  const line = (title, key, form) => R.before[key] === null ? null : [title, form(R.before[key])];
  const rows = [line("parameters", "parameters", count), line("multiply-accumulates", "macs", count),
    line("bytes of weights", "bytes", count), line("latency", "latency_ms", ms)].filter(Boolean);
  const own = R.evaluation && R.evaluation.before;
  if (own) rows.push(...Object.keys(own).map(m => [`your metric: ${m}`, three(own[m])]));
  section("summary", "Summary",
    el("div", {class: "narrow"}, table(["", "dense model"], rows, [1])),
    el("p", {}, "Proof, profile and quality stage by stage are those of one plan, and not here: ",
      el("code", {}, "graphprune prune MODEL --plan PLAN --report FILE"), " replays a plan and shows them."),
    R.assumed.length ? [el("h3", {}, "What was assumed"), el("ul", {class: "plain soft"}, R.assumed.map(t => el("li", {}, t)))] : null);
}

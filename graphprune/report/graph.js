/* The graph of operators: pan, zoom, search, select. Places come with the data; only what is in sight is drawn. */

function drawGraph() {
  const G = D.graph, nodes = G.nodes, DX = 176, DY = 74, W = 156, H = 40;
  const canvas = el("canvas", {id: "canvas", tabIndex: 0, role: "application",
    "aria-label": "Graph of operators. Arrow keys move, plus and minus zoom, n and p go from node to node, Escape clears."});
  const find = el("input", {id: "find", type: "search", placeholder: "Find a node, operator, group or weight",
    "aria-label": "Find a node, operator, group or weight", "aria-controls": "hits"});
  const hits = el("div", {id: "hits"}), card = el("div", {id: "card", "aria-live": "polite"});
  const said = el("span", {id: "said", class: "soft", role: "status"});
  const button = (text, title, act) => el("button", {type: "button", title, "aria-label": title, onclick: act}, text);
  const view = {x: 0, y: 0, zoom: 1};
  const below = nodes.map(() => []), above = nodes.map(() => []);
  G.edges.forEach(([a, b]) => { below[a].push(b); above[b].push(a); });
  const rows = [];
  nodes.forEach((n, k) => { (rows[n.y] = rows[n.y] || []).push(k); });
  const tall = [...G.edges].map(([a, b, bends]) => ({a, b, bends, top: Math.min(nodes[a].y, nodes[b].y),
    end: Math.max(nodes[a].y, nodes[b].y)})).sort((p, q) => p.top - q.top);
  const longest = Math.max(1, ...tall.map(e => e.end - e.top));
  const words = nodes.map(n => [n.n, n.t, ...n.w, ...[...n.g, ...n.r].map(k => R.groups[k].name)].join("\n").toLowerCase());
  const spent = new Map((D.profile ? D.profile.nodes : []).map(t => [t.name, t]));
  let matches = null, chosen = -1, waiting = false, theme = {};

  const px = n => n.x * DX, py = n => n.y * DY;
  function paint() {
    if (!waiting) { waiting = true; requestAnimationFrame(draw); }
  }
  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    for (const key of ["card", "ink", "soft", "line", "before", "accent", "track"]) theme[key] = style.getPropertyValue("--" + key).trim();
    theme.font = getComputedStyle(document.body).fontFamily;
  }
  function size() {
    const box = canvas.getBoundingClientRect(), ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    return {w: box.width, h: box.height, ratio};
  }
  function edge(c, e) {
    const a = nodes[e.a], b = nodes[e.b];
    c.moveTo(px(a), py(a) + H / 2);
    let x = px(a), y = py(a) + H / 2;
    const stops = e.bends.map((v, k) => [v * DX, (a.y + k + 1) * DY]);
    for (const [sx, sy] of [...stops, [px(b), py(b) - H / 2]]) {
      c.bezierCurveTo(x, y + DY * .35, sx, sy - DY * .35, sx, sy);
      [x, y] = [sx, sy];
    }
  }
  function draw() {
    waiting = false;
    const {w, h, ratio} = size(), c = canvas.getContext("2d"), z = view.zoom;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = theme.card;
    c.fillRect(0, 0, w, h);
    c.translate(w / 2, h / 2); c.scale(z, z); c.translate(-view.x, -view.y);
    const first = Math.floor((view.y - h / 2 / z - H) / DY), last = Math.ceil((view.y + h / 2 / z + H) / DY);
    const thin = z < .35;
    for (const lit of [false, true]) {
      c.beginPath();
      for (const e of tall) {
        if (e.top > last || e.end < first || e.top < first - longest) continue;
        if ((e.a === chosen || e.b === chosen) === lit) edge(c, e);
      }
      c.strokeStyle = lit ? theme.accent : theme.before;
      c.lineWidth = (lit ? 2.2 : 1.1) / Math.max(z, .35);
      c.globalAlpha = lit || !matches ? 1 : .35;
      c.stroke();
    }
    c.textBaseline = "middle";
    for (let row = Math.max(first, 0); row <= last && row < rows.length; row++) {
      for (const k of rows[row] || []) box(c, k, thin);
    }
    c.globalAlpha = 1;
  }
  function box(c, k, thin) {
    const n = nodes[k], mine = n.g.length ? n.g : n.r, z = view.zoom;
    const wide = thin ? Math.max(W, 5 / z) : W, high = thin ? Math.max(H, 2.5 / z) : H; /* never too small to be seen */
    const x = px(n) - wide / 2, y = py(n) - high / 2;
    c.globalAlpha = (!matches || matches.has(k) || k === chosen ? 1 : .22) * (n.o ? .45 : 1);
    const shown = mine.slice(0, 4), colours = shown.map(colour);
    const lit = k === chosen || (matches && matches.has(k));
    if (thin) {
      c.fillStyle = theme.before;
      if (!shown.length) c.fillRect(x, y, wide, high);
      colours.forEach((own, i) => { c.fillStyle = own; c.fillRect(x + wide * i / shown.length, y, wide / shown.length, high); });
      if (lit) { c.lineWidth = 3 / z; c.strokeStyle = theme.accent; c.strokeRect(x, y, wide, high); }
      return;
    }
    c.fillStyle = mine.length ? theme.card : theme.track;
    c.beginPath(); c.roundRect(x, y, W, H, 6); c.fill();
    c.save(); c.clip();
    shown.forEach((g, i) => {
      const own = R.groups[g], part = (W - 7) / shown.length;
      c.fillStyle = colours[i];
      c.fillRect(x, y + H * i / shown.length, 7, H / shown.length);
      c.globalAlpha *= .16; c.fillRect(x + 7, y, W - 7, H); c.globalAlpha /= .16;
      c.fillRect(x + 7 + part * i, y + H - 4, part * own.kept / own.size, 4);
    });
    c.restore();
    c.lineWidth = k === chosen ? 3 : lit ? 2.4 : 1;
    c.strokeStyle = lit ? theme.accent : theme.line;
    if (n.o) c.setLineDash([5, 4]);
    c.beginPath(); c.roundRect(x, y, W, H, 6); c.stroke();
    c.setLineDash([]);
    c.fillStyle = theme.ink; c.font = `600 13px ${theme.font}`;
    c.fillText(short(n.t, 20), x + 15, y + 13);
    c.fillStyle = theme.soft; c.font = `11px ${theme.font}`;
    c.fillText(short(n.n, 22, true), x + 15, y + 27);
  }
  const short = (text, most, tail) => text.length <= most ? text : tail ? "…" + text.slice(1 - most) : text.slice(0, most - 1) + "…";

  /* ---- moving ---- */
  const wide = Math.max(...nodes.map(px)) + W, high = Math.max(...nodes.map(py)) + H;
  function zoom(by, cx, cy) {
    const r = canvas.getBoundingClientRect(), z = Math.min(3, Math.max(.02, view.zoom * by));
    const dx = (cx === undefined ? 0 : cx - r.width / 2), dy = (cy === undefined ? 0 : cy - r.height / 2);
    view.x += dx / view.zoom - dx / z; view.y += dy / view.zoom - dy / z;
    view.zoom = z; paint();
  }
  function whole() {
    const r = canvas.getBoundingClientRect();
    view.zoom = Math.min(1.2, .94 * Math.min((r.width || 600) / wide, (r.height || 500) / high));
    view.x = wide / 2 - W / 2; view.y = high / 2 - H / 2; paint();
  }
  function top() {
    const r = canvas.getBoundingClientRect();
    view.zoom = Math.min(1, Math.max(.55, .9 * (r.width || 600) / wide));
    const starts = rows.find(Boolean) || [0];
    view.x = wide * view.zoom < r.width ? wide / 2 - W / 2 : px(nodes[starts[0]]);
    view.y = (r.height || 500) / 2 / view.zoom - H; paint();
  }
  function go(k) {
    view.x = px(nodes[k]); view.y = py(nodes[k]);
    if (view.zoom < .5) view.zoom = .9;
    choose(k);
  }
  function choose(k) {
    chosen = k; card.replaceChildren(); paint();
    if (k < 0) { card.append(el("span", {class: "soft"}, "Select a node to see its groups.")); return; }
    const n = nodes[k], t = spent.get(n.n);
    const groups = list => list.map(g => el("div", {}, swatch(g), el("button", {class: "link name", type: "button",
      onclick: () => { find.value = R.groups[g].name; search(); }}, R.groups[g].name), ` ${R.groups[g].size} → ${R.groups[g].kept}`));
    const row = (title, content) => content.length ? [el("dt", {}, title), el("dd", {}, content)] : [];
    const near = list => list.map(m => el("div", {}, el("button", {class: "link name", type: "button",
      onclick: () => go(m)}, `${nodes[m].t} ${nodes[m].n}`)));
    card.append(el("h3", {}, n.t + " ", name(n.n)), el("dl", {},
      row("output", n.a ? [name(n.a)] : []), row("groups", groups(n.g)), row("reads", groups(n.r)),
      row("weights", n.w.map(v => el("div", {class: "name"}, v))),
      row("time", t ? [`${three(t.before_ms)} → ${three(t.after_ms)} ms`] : []),
      row("from", near(above[k])), row("to", near(below[k]))));
    if (n.o) card.append(el("span", {class: "soft"}, "It is in a branch that is bypassed."));
    else if (!n.g.length && !n.r.length) card.append(el("span", {class: "soft"}, "No channel group passes here."));
  }
  function search() {
    const wanted = find.value.trim().toLowerCase();
    hits.replaceChildren();
    matches = null;
    if (wanted) {
      const found = nodes.map((_, k) => k).filter(k => words[k].includes(wanted));
      matches = new Set(found);
      said.textContent = `${found.length} of ${nodes.length} nodes`;
      hits.append(...found.slice(0, 40).map(k => el("button", {type: "button", onclick: () => go(k)}, `${nodes[k].t} ${nodes[k].n}`)));
      if (found.length) { view.x = px(nodes[found[0]]); view.y = py(nodes[found[0]]); if (view.zoom < .3) view.zoom = .6; }
    } else said.textContent = `${nodes.length} nodes`;
    paint();
  }
  function step(by) {
    const list = matches && matches.size ? [...matches] : nodes.map((_, k) => k);
    const here = list.indexOf(chosen);
    go(list[here < 0 ? (by > 0 ? 0 : list.length - 1) : (here + by + list.length) % list.length]);
  }
  function under(event) {
    const r = canvas.getBoundingClientRect();
    const x = view.x + (event.clientX - r.left - r.width / 2) / view.zoom;
    const y = view.y + (event.clientY - r.top - r.height / 2) / view.zoom;
    const row = rows[Math.round(y / DY)] || [];
    const k = row.find(m => Math.abs(px(nodes[m]) - x) <= W / 2 && Math.abs(py(nodes[m]) - y) <= H / 2);
    return k === undefined ? -1 : k;
  }
  const fingers = new Map();
  let moved = 0, apart = 0;
  canvas.addEventListener("pointerdown", e => {
    canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, e); moved = 0; apart = 0; canvas.classList.add("drag");
  });
  canvas.addEventListener("pointermove", e => {
    const was = fingers.get(e.pointerId);
    if (!was) return;
    fingers.set(e.pointerId, e);
    if (fingers.size === 1) {
      view.x -= (e.clientX - was.clientX) / view.zoom; view.y -= (e.clientY - was.clientY) / view.zoom;
      moved += Math.abs(e.clientX - was.clientX) + Math.abs(e.clientY - was.clientY);
      paint();
    } else {
      const [a, b] = fingers.values(), d = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const r = canvas.getBoundingClientRect();
      if (apart) zoom(d / apart, (a.clientX + b.clientX) / 2 - r.left, (a.clientY + b.clientY) / 2 - r.top);
      apart = d; moved = 99;
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, e => {
    if (kind === "pointerup" && moved < 5 && fingers.has(e.pointerId)) choose(under(e));
    fingers.delete(e.pointerId); apart = 0; canvas.classList.remove("drag");
  });
  canvas.addEventListener("wheel", e => {
    if (!e.ctrlKey && document.activeElement !== canvas) return; /* the page scrolls until the graph is in use */
    e.preventDefault();
    const r = canvas.getBoundingClientRect();
    zoom(Math.exp(-e.deltaY * .0016), e.clientX - r.left, e.clientY - r.top);
  }, {passive: false});
  canvas.addEventListener("keydown", e => {
    const by = 80 / view.zoom, acts = {
      ArrowLeft: () => { view.x -= by; }, ArrowRight: () => { view.x += by; }, ArrowUp: () => { view.y -= by; },
      ArrowDown: () => { view.y += by; }, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(.8), "0": whole,
      n: () => step(1), p: () => step(-1), Escape: () => { choose(-1); find.value = ""; search(); },
    };
    if (acts[e.key] && !e.ctrlKey && !e.metaKey && !e.altKey) { acts[e.key](); e.preventDefault(); paint(); }
  });
  find.addEventListener("input", search);
  find.addEventListener("keydown", e => { if (e.key === "Enter") { e.preventDefault(); step(e.shiftKey ? -1 : 1); } });

  section("graph", "Graph",
    el("p", {}, "Every operator, from inputs down to outputs. Colours are channel groups; the line below a node is the share of the group that is kept. "
      + "Grey nodes have none; dashed ones went with a branch that is bypassed."),
    G.left_out ? el("p", {class: "soft"}, `The first ${nodes.length} nodes are drawn; ${G.left_out} more are not.`) : null,
    el("div", {class: "tools"}, find, button("Next", "next match", () => step(1)), button("+", "zoom in", () => zoom(1.3)),
      button("−", "zoom out", () => zoom(.77)), button("Whole", "show the whole graph", whole), button("Start", "go to the start", top), said),
    hits, el("div", {class: "graph"}, canvas, card),
    el("p", {class: "soft hint"}, "Drag to move, two fingers or Ctrl and the wheel to zoom; with the graph in focus: arrows, +, −, 0, n, p."));
  readTheme();
  addEventListener("resize", paint);
  document.addEventListener("plan", () => choose(chosen));
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => { readTheme(); draw(); });
  }
  new ResizeObserver(paint).observe(canvas);
  choose(-1); search(); top();
}

start();

// The explorable figures of the book. Each reads the data that its page carries, and takes the place of its still.
(() => {
  "use strict";
  const figures = {};

  // ---- small helpers

  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`;

  function choices(name, legend, options, chosen, change, inside = (option) => [option.label]) {
    const group = el("fieldset", { class: "tf-controls" }, el("legend", {}, legend));
    for (const option of options) {
      const input = el("input", { type: "radio", name, value: option.value, onchange: () => change(option.value) });
      input.checked = option.value === chosen;
      group.append(el("label", { class: "tf-choice" }, input, inside(option)));
    }
    return group;
  }

  function slider(id, label, { min, max, step, value }, show, change) {
    const output = el("output", { for: id }, show(value));
    const input = el("input", { id, type: "range", min, max, step, "aria-valuetext": show(value) });
    input.value = value;
    input.addEventListener("input", () => {
      output.textContent = show(+input.value);
      input.setAttribute("aria-valuetext", show(+input.value));
      change(+input.value);
    });
    const row = el("div", { class: "tf-slider" }, el("label", { for: id }, label), input, output);
    row.set = (next) => {
      input.value = next;
      output.textContent = show(next);
    };
    return row;
  }

  // ---- drag to prune: one picture, eight answers, every method at every level

  figures["drag-to-prune"] = (box, data) => {
    let level = data.start.level;
    let method = data.start.method;
    const stops = [0, ...data.levels];
    const list = el("ul", { class: "tf-answers" });
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    const pips = {};
    const at = (what, name) => (level ? data[what][name][data.levels.indexOf(level)] : data[what].dense[0]);
    const count = (flags) => flags.reduce((sum, flag) => sum + flag, 0);

    function draw() {
      for (const [name, { row, number }] of Object.entries(pips)) {
        const flags = at("right", name), n = count(flags || []);
        [...row.children].forEach((pip, i) => (pip.style.background = i < n ? data.methods[name].color : ""));
        number.textContent = flags ? `${n} of ${data.questions.length}` : "not run";
      }
      const flags = at("right", method), words = at("answers", method), share = at("accuracy", method);
      list.replaceChildren(
        ...data.questions.map((question, i) =>
          el("li", { class: !flags ? "" : flags[i] ? "good" : "bad" },
            el("span", {}, question),
            el("b", {}, words && words[i] !== null ? words[i] || "(nothing)" : ""),
            el("span", flags ? { role: "img", "aria-label": flags[i] ? "right" : "wrong" } : {}, !flags ? "" : flags[i] ? "✓" : "✗")))
      );
      const name = level ? data.methods[method].label : "The model before pruning";
      said.textContent = !flags ? `${name} was not run at ${level} %.` :
        `${name}: ${count(flags)} of ${flags.length} right` + (level ? ` with ${level} % of the weights at zero.` : ".") +
        (share === null ? "" : ` On ${data.n_questions} questions about many pictures: ${share.toFixed(1)}\u00a0%.`);
    }

    const methods = choices("tf-method", "Right answers, by method", Object.entries(data.methods).map(([value, { label, color }]) => ({ value, label, color })), method,
      (value) => { method = value; draw(); },
      (option) => {
        const row = el("span", { class: "tf-pips", "aria-hidden": "true" }, data.questions.map(() => el("i")));
        const number = el("span", { class: "tf-count" });
        pips[option.value] = { row, number };
        return [el("span", { class: "tf-dot", style: `background:${option.color}` }), el("span", {}, option.label), row, number];
      });
    methods.className = "tf-methods";
    box.append(
      slider("tf-level", "Weights at zero", { min: 0, max: stops.length - 1, step: 1, value: stops.indexOf(level) }, (stop) => `${stops[stop]} %`, (stop) => { level = stops[stop]; draw(); }),
      el("div", { class: "tf-row" },
        el("img", { class: "tf-picture", src: data.picture, alt: data.alt, width: 108, height: 216 }), methods),
      list, said);
    draw();
  };

  // ---- one row of weights: which go, and how the others move

  figures["one-row"] = (box, data) => {
    const step = 32, left = 4, width = left * 2 + step * data.weight.length;
    const rows = [
      { label: "size of the weight", values: data.weight.map(Math.abs) },
      { label: "size of its input", values: data.norm },
      { label: "the product of both", values: data.weight.map((w, j) => Math.abs(w) * data.norm[j]) },
    ];
    const chart = svg("svg", { viewBox: `0 0 ${width} 420`, role: "img", class: "tf-narrow" });
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    const top = (place) => 22 + place * 86;
    const columns = data.weight.map((_, j) => left + j * step);
    let method = data.start;

    function draw() {
      const found = data.methods[method];
      const parts = [];
      rows.forEach(({ label, values }, place) => {
        const most = Math.max(...values), used = place === found.looks;
        parts.push(svg("text", { x: left, y: top(place) - 7, "font-size": 13, class: used ? "" : "tf-soft", "font-weight": used ? 600 : 400 }, label + (used ? ": the smallest go" : "")));
        values.forEach((value, j) => {
          const height = Math.max(1, (56 * value) / most);
          parts.push(svg("rect", { x: columns[j] + 4, y: top(place) + 56 - height, width: step - 8, height, rx: 2, fill: found.dropped[j] && used ? "var(--tf-bad)" : used ? "var(--tf-ink)" : "var(--tf-line)" }));
        });
      });
      const middle = top(3) + 62, most = Math.max(...data.weight.map(Math.abs), ...Object.values(data.methods).flatMap((each) => each.weight.map(Math.abs)));
      parts.push(svg("text", { x: left, y: top(3) - 7, "font-size": 13, "font-weight": 600 }, "the row, before (outline) and after"));
      parts.push(svg("line", { x1: left, x2: width - left, y1: middle, y2: middle, stroke: "var(--tf-line)" }));
      data.weight.forEach((before, j) => {
        const bar = (value, more) => svg("rect", { x: columns[j] + 4, y: middle - Math.max(0, (52 * value) / most), width: step - 8, height: Math.max(0.5, (52 * Math.abs(value)) / most), rx: 2, ...more });
        parts.push(bar(found.weight[j], { fill: found.moves ? "var(--tf-text)" : "var(--tf-ink)" }));
        parts.push(bar(before, { fill: "none", stroke: found.dropped[j] ? "var(--tf-bad)" : "var(--tf-soft)", "stroke-dasharray": found.dropped[j] ? "3 3" : null }));
        parts.push(svg("text", { x: columns[j] + step / 2, y: top(3) + 130, "font-size": 11, "text-anchor": "middle", class: "tf-soft" }, data.inputs[j]));
      });
      chart.replaceChildren(...parts);
      chart.setAttribute("aria-label", `${found.label} drops inputs ${data.inputs.filter((_, j) => found.dropped[j]).join(", ")}`);
      said.textContent = `${found.label}: ${found.says} The output is wrong by ${percent(found.error)}.`;
    }

    box.append(
      choices("tf-row", "Prune the row by", Object.entries(data.methods).map(([value, { label }]) => ({ value, label })), method, (value) => { method = value; draw(); }),
      chart, said);
    draw();
  };

  // ---- the tokens of a sample: words, the picture shrunk, the picture in full, ends of rows

  function tokenMap(data, name) {
    const nodes = [];
    const picture = (x, y, w, h) => svg("image", { href: data.picture, x, y, width: w, height: h, preserveAspectRatio: "none", style: "image-rendering:pixelated" });
    const cell = 15, small = 10, [rows, columns] = data.full, [down, across] = data.base;
    const wide = columns * cell, high = rows * cell, offset = wide + 16 + 14;
    const view = svg("svg", { viewBox: `0 0 ${offset + across * small + 2} ${high + 20}`, class: "tf-tokens" });
    view.append(
      svg("text", { x: 0, y: 11, "font-size": 10, class: "tf-soft" }, "full view, newlines"), picture(0, 18, wide, high),
      svg("text", { x: offset, y: 11, "font-size": 10, class: "tf-soft" }, "base view"), picture(offset, 18, across * small, down * small));
    const words = el("div", { class: "tf-words" });
    const visual = down * across + rows * (columns + 1);
    const add = (node, label) => { node.dataset.token = nodes.length; nodes.push({ node, label }); return node; };
    const word = (text) => words.append(add(el("span", {}, text), `the word ${text}`));
    data.words.slice(0, data.first).forEach(word);
    words.append(el("em", {}, "picture"));
    for (let i = 0; i < down * across; i++)
      view.append(add(svg("rect", { x: offset + (i % across) * small, y: 18 + Math.floor(i / across) * small, width: small, height: small, class: "tf-token" }), "a patch of the base view"));
    for (let i = 0; i < rows * (columns + 1); i++) {
      const column = i % (columns + 1), row = Math.floor(i / (columns + 1)), end = column === columns;
      view.append(add(svg("rect", { x: column * cell + (end ? 4 : 0), y: 18 + row * cell + (end ? 2 : 0), width: end ? 8 : cell, height: end ? cell - 4 : cell, rx: end ? 2 : 0, class: end ? "tf-token tf-newline" : "tf-token" }), end ? "the newline of a row" : "a patch of the full view"));
    }
    data.words.slice(data.first).forEach(word);
    const side = el("div", { class: "tf-side" }, words);
    const holder = el("div", { class: "tf-row tf-map" }, view, side);
    return { holder, side, view, words, nodes, isWord: (i) => i < data.first || i >= data.first + visual, count: nodes.length };
  }

  // ---- who votes: tokens that look alike, and how much of the vote words have

  figures["who-votes"] = (box, data) => {
    const map = tokenMap(data);
    const bits = Uint8Array.from(atob(data.alike), (c) => c.charCodeAt(0));
    const alike = (i, j) => { const at = i * map.count + j; return (bits[at >> 3] >> (7 - (at & 7))) & 1; };
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    let chosen = data.start;

    function draw(i) {
      chosen = i;
      let patches = 0, words = 0;
      map.nodes.forEach(({ node }, j) => {
        const on = alike(i, j);
        node.classList.toggle("on", !!on);
        node.classList.toggle("here", i === j);
        if (on && i !== j) map.isWord(j) ? words++ : patches++;
      });
      const many = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
      said.textContent = `You point at ${map.nodes[i].label}. Tokens like it (cosine above ${data.threshold}): ${many(patches, "picture token")}, ${many(words, "word")}.`;
    }

    for (const part of [map.view, map.words]) {
      const point = (event) => { const token = event.target.dataset && event.target.dataset.token; if (token !== undefined) draw(+token); };
      part.addEventListener("pointerover", point);
      part.addEventListener("pointerdown", point);
    }
    map.view.setAttribute("tabindex", 0);
    map.view.setAttribute("role", "application");
    map.view.setAttribute("aria-label", "Tokens; arrow keys move from one to the next");
    map.view.addEventListener("keydown", (event) => {
      const go = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: data.full[1] + 1, ArrowUp: -data.full[1] - 1 }[event.key];
      if (!go) return;
      event.preventDefault();
      draw((chosen + go + map.count) % map.count);
    });
    const bars = el("div", { class: "tf-bars" });
    const bar = (label, share, strong) => bars.append(
      el("span", {}, label), el("span", { class: "tf-bar" }, el("i", { style: `width:${100 * share}%` })), el("span", { class: "tf-count" }, percent(share, 1)));
    bar("of the tokens", data.tokens);
    data.shares.forEach(({ linears, share }) => bar(`of the vote in ${linears.join(", ")}`, share));
    box.append(map.holder, said, el("p", { class: "tf-note" }, `What the words have, over ${data.n_samples} samples:`), bars);
    draw(chosen);
  };

  // ---- step through the picks of AMIA

  figures["step-through-picks"] = (box, data) => {
    const map = tokenMap(data);
    const total = data.picks.length;
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    const width = 300, height = 118, right = width - 8, most = Math.max(...data.mmd);
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "tf-mmd", role: "img", "aria-label": "MMD squared after each pick, and the bound" });
    const x = (n) => 26 + ((right - 26) * (n - 1)) / Math.max(1, total - 1);
    const y = (value) => height - 18 - ((height - 34) * value) / most;
    let at = data.start, timer = null;

    function draw() {
      map.nodes.forEach(({ node }, i) => {
        const order = data.picks.indexOf(i);
        const picked = order >= 0 && order < at;
        node.classList.toggle("on", picked);
        node.classList.toggle("here", picked && order === at - 1);
        node.classList.toggle("near", at > 0 && data.neighbours[data.picks[at - 1]].includes(i));
      });
      chart.replaceChildren(
        svg("text", { x: 26, y: 11, "font-size": 11, class: "tf-soft" }, "distance of the picks to all tokens (MMD²)"),
        svg("line", { x1: 26, x2: right, y1: y(data.bound), y2: y(data.bound), stroke: "var(--tf-accent)", "stroke-dasharray": "4 4" }),
        svg("text", { x: right, y: y(data.bound) - 4, "font-size": 11, "text-anchor": "end" }, "enough"),
        svg("polyline", { points: data.mmd.map((value, n) => `${x(n + 1)},${y(value)}`).join(" "), fill: "none", stroke: "var(--tf-line)" }),
        ...data.mmd.slice(0, at).map((value, n) => svg("circle", { cx: x(n + 1), cy: y(value), r: n === at - 1 ? 5 : 3, fill: "var(--tf-ink)" })),
        svg("text", { x: 26, y: height - 2, "font-size": 11, class: "tf-soft" }, "1"),
        svg("text", { x: right, y: height - 2, "font-size": 11, "text-anchor": "end", class: "tf-soft" }, `${total} picks`));
      const words = data.picks.slice(0, at).filter(map.isWord).length;
      said.textContent = at
        ? `Pick ${at} of ${total}: ${map.nodes[data.picks[at - 1]].label}. So far ${words} of ${at} are words. MMD² ${data.mmd[at - 1].toFixed(4)}, bound ${data.bound.toFixed(4)}.`
        : `Nothing is picked. Shades show what the last token attends to.`;
      steps.set(at);
    }

    const steps = slider("tf-step", "Picks", { min: 0, max: total, step: 1, value: at }, (n) => `${n}`, (n) => { at = n; stop(); draw(); });
    const play = el("button", { type: "button", onclick: () => (timer ? stop() : run()) }, "Play");
    function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
    function run() {
      if (at === total) at = 0;
      play.textContent = "Stop";
      timer = setInterval(() => { at++; draw(); if (at === total) stop(); }, 700);
    }
    map.nodes.forEach(({ node }, i) => node.style.setProperty("--heat", data.attention[i] / 100));
    map.holder.classList.add("tf-heat");
    steps.prepend(play);
    map.side.append(chart);
    box.append(el("p", { class: "tf-note" }, data.title), steps, map.holder, said);
    draw();
  };

  // ---- a plan with two sliders

  // The arithmetic of tamp.allocation.allocate, in whole numbers: shares have one denominator, the sum of the scores.
  function allocate(scores, sizes, target, room) {
    const big = (number) => BigInt(number);
    const sum = (list) => list.reduce((a, b) => a + b, 0n);
    const n = sizes.map(big), total = sum(n);
    const weights = scores.map((score) => big(Math.round(score * 1e6)));
    const cap = big(Math.min(100, target + room));
    const twice = 2n * total * big(target), whole = twice / 200n, rest = twice % 200n; // the total to drop, halves to even
    const drop = rest > 100n || (rest === 100n && whole % 2n) ? whole + 1n : whole;
    const keep = total - drop;
    const kept = n.map((size) => (size * (100n - cap) + 99n) / 100n);
    const order = (first, second) => (first < second ? -1 : first > second ? 1 : 0);
    for (const i of scores.map((_, i) => i).sort((a, b) => scores[a] - scores[b] || a - b)) {
      if (sum(kept) <= keep) break;
      kept[i] = (n[i] * (100n - cap)) / 100n;
    }
    let left = keep - sum(kept), open = n.map((_, i) => i).filter((i) => kept[i] < n[i]);
    const parts = n.map(() => [0n, 1n]); // what is shared last: a numerator and a denominator
    while (left) {
      let all = sum(open.map((i) => weights[i]));
      const weight = all ? (i) => weights[i] : () => 1n;
      all = all || big(open.length);
      const full = open.filter((i) => kept[i] * all + left * weight(i) >= n[i] * all);
      if (!full.length) {
        for (const i of open) parts[i] = [left * weight(i), all];
        break;
      }
      for (const i of full) { left -= n[i] - kept[i]; kept[i] = n[i]; }
      open = open.filter((i) => !full.includes(i));
    }
    parts.forEach(([part, all], i) => { kept[i] += part / all; });
    const rests = parts.map(([part, all]) => part % all);
    let missing = keep - sum(kept);
    const largest = parts.map((_, i) => i).sort((a, b) => order(rests[b] * parts[a][1], rests[a] * parts[b][1]) || a - b);
    while (missing > 0n)
      for (const i of largest) if (missing > 0n && kept[i] < n[i]) { kept[i] += 1n; missing -= 1n; }
    return kept.map((value, i) => Number(n[i] - value));
  }

  figures["plan-sliders"] = (box, data) => {
    let model = Object.keys(data.models)[0], target = data.start.target, room = data.start.room, equal = false;
    const chart = svg("svg", { viewBox: "0 0 480 262", role: "img" });
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    const legend = el("p", { class: "tf-legend" });
    const x = (share) => 40 + 390 * share, y = (share) => 222 - 200 * share;

    function draw() {
      const { kinds, sizes, scores, blocks } = data.models[model];
      const used = equal ? sizes.map(() => 1) : scores;
      const drops = allocate(used, sizes, target, room);
      const shares = drops.map((drop, i) => drop / sizes[i]);
      const lines = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
        svg("line", { x1: 40, x2: 430, y1: y(share), y2: y(share), stroke: "var(--tf-line)", "stroke-width": 0.6 }),
        svg("text", { x: 34, y: y(share) + 4, "font-size": 12, "text-anchor": "end", class: "tf-soft" }, `${100 * share}`)]);
      chart.replaceChildren(
        ...lines,
        svg("text", { x: 0, y: 11, "font-size": 12, class: "tf-soft" }, "dropped of each linear, %"),
        svg("line", { x1: 40, x2: 430, y1: y(target / 100), y2: y(target / 100), stroke: "var(--tf-accent)", "stroke-dasharray": "5 4" }),
        svg("text", { x: 436, y: y(target / 100) + 4, "font-size": 12 }, "target"),
        ...shares.map((share, i) => svg("circle", { cx: x((i + 0.5) / shares.length), cy: y(share), r: shares.length > 100 ? 3 : 4.5, fill: data.colors[i % kinds.length], stroke: "var(--tf-ground)", "stroke-width": 0.7 })),
        svg("text", { x: 40, y: 242, "font-size": 12, class: "tf-soft" }, "block 0"),
        svg("text", { x: 430, y: 242, "font-size": 12, "text-anchor": "end", class: "tf-soft" }, `block ${blocks - 1}`));
      chart.setAttribute("aria-label", `${shares.length} linears between ${percent(Math.min(...shares))} and ${percent(Math.max(...shares))}`);
      legend.replaceChildren(...kinds.map((kind, i) => el("span", {}, el("i", { class: "tf-dot", style: `background:${data.colors[i]}` }), kind)));
      const total = sizes.reduce((a, b) => a + b, 0), gone = drops.reduce((a, b) => a + b, 0);
      said.textContent = `Linears lose between ${percent(Math.min(...shares))} and ${percent(Math.max(...shares))}; together ${gone.toLocaleString("en")} of ${total.toLocaleString("en")} weights` +
        (equal ? ". All scores are equal: what is left is the effect of size." : ".");
    }

    const toggle = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
      equal = !equal;
      toggle.setAttribute("aria-pressed", equal);
      toggle.textContent = equal ? "Scores of DAS" : "Equal scores";
      draw();
    } }, "Equal scores");
    const models = choices("tf-model", "Model", Object.keys(data.models).map((value) => ({ value, label: value })), model, (value) => { model = value; draw(); });
    box.append(
      slider("tf-target", "Target", { min: 10, max: 90, step: 1, value: target }, (value) => `${value} %`, (value) => { target = value; draw(); }),
      slider("tf-cap", "Cap above it", { min: 0, max: 50, step: 1, value: room }, (value) => `+${value}`, (value) => { room = value; draw(); }),
      el("div", { class: "tf-controls" }, toggle), chart, legend, said, models);
    draw();
  };

  // ---- the ranking turns over: every method on three models

  figures["ranking"] = (box, data) => {
    let chosen = data.start;
    const names = Object.keys(data.methods), n = names.length;
    const chart = svg("svg", { viewBox: `0 0 400 ${48 + n * 26}`, role: "group", "aria-label": "Rank of every method on three models" });
    const said = el("p", { class: "tf-say", "aria-live": "polite" });
    const x = (column) => 104 + column * 121, y = (rank) => 34 + rank * 26;
    const draw = () => {
      const parts = data.columns.map(({ name, level }, column) => svg("text", { x: x(column), y: 16, "font-size": 12, "text-anchor": "middle" }, name, svg("tspan", { x: x(column), dy: 15, class: "tf-soft", fill: "var(--tf-soft)" }, level)));
      for (const name of [...names.filter((each) => each !== chosen), chosen]) {
        const { label, color, ranks, low, high } = data.methods[name], strong = name === chosen;
        const opacity = strong ? 1 : 0.45;
        parts.push(svg("g", { tabindex: 0, role: "button", "aria-label": label, class: "tf-pick", onclick: () => pick(name), onfocus: () => pick(name), onpointerenter: () => pick(name) },
          strong ? ranks.map((_, column) => svg("line", { x1: x(column), x2: x(column), y1: y(low[column]), y2: y(high[column]), stroke: color, "stroke-width": 12, "stroke-linecap": "round", opacity: 0.25 })) : [],
          svg("polyline", { points: ranks.map((rank, column) => `${x(column)},${y(rank)}`).join(" "), fill: "none", stroke: color, "stroke-width": strong ? 4 : 2, opacity }),
          ranks.map((rank, column) => svg("circle", { cx: x(column), cy: y(rank), r: strong ? 6 : 4, fill: color, opacity })),
          svg("text", { x: x(0) - 12, y: y(ranks[0]) + 4, "font-size": 13, "text-anchor": "end", "font-weight": strong ? 700 : 400 }, label)));
      }
      chart.replaceChildren(...parts);
      const found = data.methods[chosen];
      said.textContent = `${found.label}: ` + data.columns.map(({ name, level }, column) => {
        const [points, low, high] = found.gains[column];
        const sign = (value) => (value > 0 ? "+" : "") + value.toFixed(1);
        return `${name} at ${level} ${found.accuracy[column].toFixed(1)} %` + (chosen === data.baseline ? "" : ` (${sign(points)} [${sign(low)}, ${sign(high)}] against Wanda)`);
      }).join("; ") + ".";
    };
    const pick = (name) => { if (name !== chosen) { const focused = chart.contains(document.activeElement); chosen = name; draw(); if (focused) chart.lastChild.focus({ preventScroll: true }); } };
    const many = choices("tf-ranked", "Method", names.map((value) => ({ value, label: data.methods[value].label })), chosen, (value) => pick(value));
    box.append(chart, said, many);
    draw();
  };

  // ---- a clip and what is picked of it, with and without padding

  figures["clip-picks"] = (box, data) => {
    let policy = data.start, timer = null, now = 0;
    const wide = 400, frame = wide / data.times, top = frame + 40, high = 84, length = data.policies.plain.seconds;
    const chart = svg("svg", { viewBox: `0 0 ${wide} ${top + high + 4}`, role: "img", class: "tf-clip" });
    const line = (y1, y2) => svg("line", { y1, y2, stroke: "#ff3d00", "stroke-width": 1.5 });
    const cursors = [line(18, 18 + frame), line(top, top + high)];
    const bars = el("div", { class: "tf-bars tf-kinds" });
    const said = el("p", { class: "tf-say", "aria-live": "polite" });

    function move() {
      [length, data.policies[policy].seconds].forEach((seconds, i) => {
        cursors[i].setAttribute("x1", (wide * now) / seconds);
        cursors[i].setAttribute("x2", (wide * now) / seconds);
      });
    }

    function draw() {
      const found = data.policies[policy], cells = data.edge * data.edge, cell = frame / data.edge;
      const step = (wide * data.heights) / found.hear.length, band = high / data.heights;
      const most = Math.max(...found.seen, ...found.hear);
      const parts = [
        svg("text", { x: 0, y: 12, "font-size": 12, class: "tf-soft" }, "frames; yellow where many linears pick"),
        svg("image", { href: data.strip, x: 0, y: 18, width: wide, height: frame, preserveAspectRatio: "none", style: "image-rendering:pixelated" }),
        svg("text", { x: 0, y: top - 6, "font-size": 12, class: "tf-soft" }, found.tokens.silence ? `eight pieces of sound, then silence up to ${Math.round(found.seconds)} s` : "the sound"),
        svg("image", { href: found.sound, x: 0, y: top, width: wide, height: high, preserveAspectRatio: "none" })];
      const mark = (x, y, width, height, picks) => picks && parts.push(svg("rect", { x, y, width, height, fill: "#ffd54f", opacity: ((0.9 * picks) / most).toFixed(2) }));
      found.seen.forEach((picks, i) => {
        const time = Math.floor(i / cells), at = i % cells;
        mark(time * frame + (at % data.edge) * cell, 18 + Math.floor(at / data.edge) * cell, cell, cell, picks);
      });
      found.hear.forEach((picks, i) => mark(Math.floor(i / data.heights) * step, top + high - ((i % data.heights) + 1) * band, step, band, picks));
      chart.replaceChildren(...parts, ...cursors);
      move();
      const kinds = Object.keys(found.picks).filter((kind) => found.tokens[kind]);
      const total = kinds.reduce((sum, kind) => sum + found.picks[kind], 0);
      bars.replaceChildren(...kinds.flatMap((kind) => [
        el("span", {}, kind),
        el("span", { class: "tf-bar" }, el("i", { style: `width:${(100 * found.picks[kind]) / total}%; background:${data.colors[kind]}` })),
        el("span", { class: "tf-count" }, `${found.picks[kind].toFixed(1)} of ${found.tokens[kind]}`)]));
      said.textContent = `A linear picks ${total.toFixed(0)} tokens in the mean: ` + kinds.map((kind) => `${percent(found.picks[kind] / total)} ${kind}`).join(", ") + ".";
      chart.setAttribute("aria-label", said.textContent);
    }

    const audio = new Audio(data.audio);
    const play = el("button", { type: "button", onclick: () => (timer ? stop() : run()) }, "Play the clip");
    function stop() { cancelAnimationFrame(timer); timer = null; audio.pause(); play.textContent = "Play the clip"; }
    function run() {
      audio.currentTime = 0;
      Promise.resolve(audio.play()).catch(() => {});
      const begin = performance.now();
      play.textContent = "Stop";
      const tick = (time) => {
        now = Math.min(length, (time - begin) / 1000);
        move();
        if (now < length) timer = requestAnimationFrame(tick); else stop();
      };
      timer = requestAnimationFrame(tick);
    }
    box.append(
      choices("tf-policy", "How the model reads the sound", [{ value: "plain", label: "as it is" }, { value: "paper", label: "as published, filled up with silence" }], policy, (value) => { policy = value; draw(); }),
      chart, el("div", { class: "tf-controls" }, play), el("p", { class: "tf-note" }, "Picked by a linear, of all tokens:"), bars, said);
    draw();
  };

  // ---- put them into the page

  function start() {
    for (const figure of document.querySelectorAll("figure.tamp-figure[data-figure]")) {
      const make = figures[figure.dataset.figure];
      const source = figure.querySelector('script[type="application/json"]');
      if (!make || !source) continue;
      const box = el("div", { class: "tf-box", role: "group", "aria-label": figure.querySelector(".tamp-still").getAttribute("aria-label") });
      make(box, JSON.parse(source.textContent));
      figure.insertBefore(box, figure.firstChild);
      figure.classList.add("tf-live");
    }
  }

  if (typeof module !== "undefined") module.exports = { allocate };
  if (typeof document !== "undefined") {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }
})();

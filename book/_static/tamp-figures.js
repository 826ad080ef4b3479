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
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

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
    const answers = (name, at) => data.answers[at === 0 ? "dense" : name][at === 0 ? 0 : data.levels.indexOf(at)];
    const right = (given) => (given || []).map((answer, i) => answer === data.questions[i].answer);
    const count = (flags) => flags.filter(Boolean).length;

    function draw() {
      for (const [name, { row, number }] of Object.entries(pips)) {
        const n = count(right(answers(name, level)));
        [...row.children].forEach((pip, i) => (pip.style.background = i < n ? data.methods[name].color : ""));
        number.textContent = answers(name, level) ? `${n} of ${data.questions.length}` : "not run";
      }
      const given = answers(method, level) || [];
      const flags = right(given);
      list.replaceChildren(
        ...data.questions.map((question, i) =>
          el("li", { class: flags[i] ? "good" : "bad" },
            el("span", {}, question.question),
            el("b", {}, given[i] || "(nothing)"),
            el("span", { role: "img", "aria-label": flags[i] ? "right" : "wrong" }, flags[i] ? "✓" : "✗")))
      );
      const name = level ? data.methods[method].label : "The model before pruning";
      const share = (data.accuracy[level ? method : "dense"] || {})[level];
      said.textContent =
        `${name}: ${count(flags)} of ${flags.length} right` + (level ? ` with ${level} % of the weights at zero.` : ".") +
        (share === undefined ? "" : ` On ${data.n_questions} questions about other pictures: ${share.toFixed(1)} %.`);
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

  if (typeof document !== "undefined") {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }
})();

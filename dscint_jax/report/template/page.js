// The gallery: filters, orders and paints the studies that lie in the page as data.
"use strict";
(() => {
  const gallery = JSON.parse(field("gallery-data").textContent);
  const list = field("cases");
  const paint = viewer(gallery);
  const site = (item) => item.facts.site || "";
  const confidence = (item) => Math.max(...item.probabilities);
  const seen = new Set();
  let shown = [];
  let chosen = null;

  for (const name of [...new Set(gallery.cases.map(site))].filter(Boolean).sort()) {
    field("site").append(new Option(name));
  }
  field("site").parentElement.hidden = field("site").options.length < 3;

  // Pictures are painted when they come into view, and again when the display changes.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const item = entry.target.item;
      if (!entry.isIntersecting) seen.delete(item);
      else if (!seen.has(item)) {
        seen.add(item);
        paint(item);
      }
    }
  }, { rootMargin: "200px" });

  let waiting = false;
  function repaint() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      seen.forEach(paint);
    });
  }

  function line(name, text) {
    const span = document.createElement("span");
    span.className = name;
    span.textContent = text;
    return span;
  }

  function card(item) {
    const entry = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = item.right ? "right" : "wrong";
    button.setAttribute("aria-pressed", "false");
    button.tabIndex = -1;
    item.canvas = document.createElement("canvas");
    item.canvas.width = gallery.width * item.views.length;
    item.canvas.height = gallery.height;
    item.canvas.setAttribute("role", "img");
    item.canvas.setAttribute("aria-label", item.views.join(", "));
    const verdict = item.right ? "read as such" : "read as " + item.predicted;
    const numbers = gallery.classes.map((name, i) => name + " " + item.probabilities[i].toFixed(3));
    const facts = Object.entries(item.facts).map((pair) => pair.join(" "));
    button.append(
      item.canvas,
      line("name", item.label),
      line("said", verdict + ", p = " + confidence(item).toFixed(2)),
      line("more", item.views.join("; ")),
      line("more", numbers.join("; ")),
      line("more", [...facts, "study " + item.id].join("; ")),
    );
    button.addEventListener("click", () => choose(item));
    entry.append(button);
    entry.item = item;
    item.entry = entry;
    item.words = [item.label, item.predicted, item.right ? "right" : "wrong", item.id, ...facts,
      ...item.views].join(" ").toLowerCase();
    watcher.observe(entry);
  }

  function choose(item) {
    if (chosen === item) return;
    if (chosen) mark(chosen, false);
    chosen = item;
    if (!item) return;
    mark(item, true);
    item.entry.scrollIntoView({ block: "nearest" });
  }

  function mark(item, on) {
    const button = item.entry.firstChild;
    item.entry.classList.toggle("chosen", on);
    button.setAttribute("aria-pressed", String(on));
    button.tabIndex = on ? 0 : -1;
  }

  const orders = {
    split: () => 0,
    errors: (a, b) => a.right - b.right || confidence(b) - confidence(a),
    rising: (a, b) => confidence(a) - confidence(b),
    falling: (a, b) => confidence(b) - confidence(a),
    label: (a, b) => gallery.classes.indexOf(a.label) - gallery.classes.indexOf(b.label),
    site: (a, b) => site(a).localeCompare(site(b)),
  };

  function wanted(item) {
    const value = (id) => field(id).value;
    return (
      (!value("label") || item.label === value("label")) &&
      (!value("predicted") || item.predicted === value("predicted")) &&
      (!value("verdict") || item.right === (value("verdict") === "right")) &&
      (!value("site") || site(item) === value("site")) &&
      confidence(item) <= Number(value("most")) + 5e-3 &&
      value("find").toLowerCase().split(/\s+/).every((word) => item.words.includes(word))
    );
  }

  function arrange() {
    shown = gallery.cases.filter(wanted).sort(orders[field("order").value]);
    list.replaceChildren(...shown.map((item) => item.entry));
    field("count").textContent = shown.length + " of " + gallery.cases.length + " studies";
    if (!shown.includes(chosen)) choose(null);
    if (!chosen && shown.length) shown[0].entry.firstChild.tabIndex = 0;
  }

  function move(by) {
    const from = shown.findIndex((item) => item.entry.contains(document.activeElement));
    const item = shown[Math.min(Math.max(from + by, 0), shown.length - 1)];
    choose(item);
    item.entry.firstChild.focus({ preventScroll: true });
  }

  function columns() {
    return getComputedStyle(list).gridTemplateColumns.split(" ").length;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select");
    if (typing && event.key === "Escape") {
      // Otherwise the browser empties the field without telling the filter.
      event.preventDefault();
      event.target.blur();
    }
    if (typing) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    const within = list.contains(document.activeElement);
    if (event.key === "/") field("find").focus();
    else if (event.key === "o") toggle();
    else if (event.key in steps && within) move(steps[event.key]);
    else return;
    event.preventDefault();
  }

  function toggle() {
    const opacity = field("opacity");
    opacity.value = Number(opacity.value) > 0 ? "0" : "0.5";
    opacity.dispatchEvent(new Event("input", { bubbles: true }));
  }

  gallery.cases.forEach(card);
  for (const id of ["find", "label", "predicted", "verdict", "site", "most", "order"]) {
    field(id).addEventListener("input", arrange);
  }
  onDisplayChange(repaint);
  document.addEventListener("keydown", onKey);
  addEventListener("beforeprint", () => shown.forEach(paint));
  arrange();
})();

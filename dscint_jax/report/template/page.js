// The gallery: filters, orders and paints the studies that lie in the page as data.
"use strict";
(() => {
  const field = (id) => document.getElementById(id);
  const gallery = JSON.parse(field("gallery-data").textContent);
  const list = field("cases");
  const colours = Uint8Array.from(gallery.colours.match(/../g), (pair) => parseInt(pair, 16));
  const site = (item) => item.facts.site || "";
  const confidence = (item) => Math.max(...item.probabilities);
  const seen = new Set();
  let shown = [];
  let chosen = null;

  for (const name of [...new Set(gallery.cases.map(site))].filter(Boolean).sort()) {
    field("site").append(new Option(name));
  }
  field("site").parentElement.hidden = field("site").options.length < 3;

  // A picture's shades, 0 to 255, once they are decoded.
  async function shades(text) {
    const image = new Image();
    image.src = "data:image/webp;base64," + text;
    await image.decode();
    return image;
  }

  function pixels(image, width, height) {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height);
  }

  async function decoded(item) {
    const width = gallery.width * item.views.length;
    if (!item.picturePixels) {
      item.picturePixels = pixels(await shades(item.picture), width, gallery.height);
      item.mapPixels = {};
    }
    const name = field("map").value;
    if (name && item.maps[name] && !item.mapPixels[name]) {
      item.mapPixels[name] = pixels(await shades(item.maps[name]), width, gallery.height);
    }
    return item.mapPixels[name];
  }

  async function paint(item) {
    const heat = await decoded(item);
    const source = item.picturePixels;
    const canvas = item.canvas;
    canvas.width = source.width;
    canvas.height = source.height;
    const painted = new ImageData(source.width, source.height);
    const wide = Number(field("window").value);
    const low = Number(field("level").value) - wide / 2;
    const opacity = heat ? Number(field("opacity").value) : 0;
    // Where the map says nothing, or what compression makes of nothing, the scan is seen as it is.
    for (let i = 0; i < painted.data.length; i += 4) {
      const overScan = heat ? opacity * Math.sqrt(Math.max(0, heat.data[i] - 8) / 247) : 0;
      const share = ((source.data[i] / 255) * gallery.clip - low) / wide;
      const grey = 255 * (1 - Math.min(1, Math.max(0, share)));
      for (let k = 0; k < 3; k += 1) {
        const over = overScan ? colours[3 * heat.data[i] + k] : 0;
        painted.data[i + k] = (1 - overScan) * grey + overScan * over;
      }
      painted.data[i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(painted, 0, 0);
    canvas.dataset.painted = "yes";
  }

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
  for (const id of ["map", "opacity", "window", "level"]) {
    field(id).addEventListener("input", repaint);
  }
  for (const output of document.querySelectorAll(".controls output")) {
    const slider = field(output.htmlFor.value);
    slider.addEventListener("input", () => {
      output.textContent = Number(slider.value).toFixed(2);
    });
  }
  document.addEventListener("keydown", onKey);
  addEventListener("beforeprint", () => shown.forEach(paint));
  arrange();
})();

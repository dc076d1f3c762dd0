// Reads DICOM and PNG files, brings them to the network's matrix, asks the network and shows it all.
"use strict";

const ROWS = 1024, COLUMNS = 256, MOST_COUNTS = 65535;
const about = JSON.parse(document.getElementById("about").textContent);
const field = (id) => document.getElementById(id);

// What a file is refused for; anything else that is thrown is a fault of this page.
class Refusal extends Error {}

function refuseIf(condition, reason) {
  if (condition) throw new Refusal(reason);
}

// ---- Files: to counts of frames, each { view, pixels }, with the rows and columns of all.

// DICOM PS3.16 CID 26, SNOMED RT and CT.
const VIEW_CODES = {
  "G-5215": "anterior", "G-5200": "anterior", "399321004": "anterior",
  "G-5216": "posterior", "G-5201": "posterior", "399001007": "posterior",
};
const UNCOMPRESSED = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"];
const PLANAR = ["WHOLE BODY", "STATIC"];
// Nuclear Medicine Image Storage, and its retired form.
const NUCLEAR = ["1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.5"];

function readDicom(bytes) {
  let set;
  try {
    set = dicomParser.parseDicom(bytes);
  } catch {
    throw new Refusal("is damaged, or no DICOM file with a file header");
  }
  const text = (tag) => (set.string(tag) ?? "").trim().toUpperCase();
  refuseIf(!UNCOMPRESSED.includes(text("x00020010")),
    "is compressed, or written high byte first, which this page does not read");
  refuseIf(text("x00080060") !== "NM" || !NUCLEAR.includes(text("x00080016")),
    "is no nuclear-medicine image (Modality, SOPClassUID)");
  refuseIf(text("x00280301") === "YES", "has text in its pixels (BurnedInAnnotation)");
  const kinds = text("x00080008").split("\\").map((one) => one.trim()), kind = kinds[2] ?? "";
  refuseIf(kinds.includes("TRANSMISSION"), "is a transmission image (ImageType)");
  refuseIf(kind && !PLANAR.includes(kind), `is a ${kind.toLowerCase()} acquisition (ImageType)`);
  const bits = set.uint16("x00280100"), stored = set.uint16("x00280101") ?? bits;
  refuseIf(![8, 16].includes(bits) || (set.uint16("x00280002") ?? 1) !== 1
      || text("x00280004") !== "MONOCHROME2",
    "does not hold grey values of 8 or 16 bits (MONOCHROME2)");
  refuseIf(Number(text("x00281053") || 1) !== 1 || Number(text("x00281052") || 0) !== 0,
    "rescales its pixels (RescaleSlope, RescaleIntercept), which this page does not do");
  const rows = set.uint16("x00280010"), columns = set.uint16("x00280011");
  const frames = Number(text("x00280008") || 1);
  const vector = (tag) => {
    const held = (set.elements[tag]?.length ?? 0) / 2;
    refuseIf(held && held !== frames, `says of ${held} frames what they are, and has ${frames}`);
    return Array.from({ length: held }, (_, n) => set.uint16(tag, n));
  };
  const windows = vector("x00540010"), detectors = vector("x00540020");
  refuseIf(new Set(windows).size > 1, "has images of several energy windows");
  const element = set.elements.x7fe00010;
  const size = rows * columns, width = bits / 8;
  refuseIf(!element || element.encapsulatedPixelData || !size
      || element.length < size * frames * width
      || element.dataOffset + size * frames * width > bytes.length,
    "has no pixels, or fewer than its header says");
  refuseIf(element.length >= size * (frames + 1) * width, "has more frames than its header says");
  const view = new DataView(bytes.buffer, bytes.byteOffset + element.dataOffset);
  // Bits above those that are stored may hold an overlay; the highest that is may be a sign.
  const mask = 2 ** Math.min(stored, bits) - 1;
  const sign = set.uint16("x00280103") ? (mask + 1) / 2 : 0;
  const counts = (at) => {
    const value = mask & (bits === 16 ? view.getUint16(2 * at, true) : view.getUint8(at));
    refuseIf(value & sign, "has negative pixels, so they are not counts");
    return value;
  };
  return {
    rows, columns,
    frames: Array.from({ length: frames }, (_, frame) => ({
      view: codedView(set, detectors[frame] ?? frame + 1),
      pixels: Uint32Array.from({ length: size }, (_, n) => counts(frame * size + n)),
    })),
  };
}

// Of the detector's coded view; empty where the file does not code it.
function codedView(set, detector) {
  const item = set.elements.x00540022?.items?.[detector - 1]?.dataSet;
  const code = item?.elements.x00540220?.items?.[0]?.dataSet?.string("x00080100") ?? "";
  return VIEW_CODES[code.trim()] ?? "";
}

function readPng(bytes) {
  let image;
  try {
    image = UPNG.decode(bytes.buffer);
  } catch {
    throw new Refusal("is a damaged PNG file");
  }
  const { width: columns, height: rows, depth, ctype, data } = image;
  refuseIf(ctype !== 0 || ![8, 16].includes(depth),
    "is no grey PNG of 8 or 16 bits");
  const value = depth === 8 ? (n) => data[n] : (n) => 256 * data[2 * n] + data[2 * n + 1];
  refuseIf(data.length < rows * columns * depth / 8, "is a damaged PNG file");
  const pixels = Uint32Array.from({ length: rows * columns }, (_, n) => value(n));
  return { rows, columns, frames: [{ view: "", pixels }] };
}

async function readFile(file) {
  refuseIf(file.size > 2 ** 26, "is larger than any bone scan");
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isPng = [0x89, 0x50, 0x4e, 0x47].every((byte, n) => bytes[n] === byte);
  const read = isPng ? readPng(bytes) : readDicom(bytes);
  refuseIf(read.frames.length > 2, `has ${read.frames.length} frames; one or two views are read`);
  refuseIf(read.rows < 2 * read.columns,
    `is ${read.rows}x${read.columns} pixels, which no whole-body scan is`);
  for (const frame of read.frames) {
    refuseIf(isUniform(frame.pixels, read.rows, read.columns),
      "has uniform counts: a flood or bar phantom, not a body");
    frame.pixels = toMatrix(frame.pixels, read.rows, read.columns);
    refuseIf(!frame.pixels.some((counts) => counts > 0), "has a view without counts");
  }
  const [first, second] = read.frames;
  refuseIf(second && first.view && first.view === second.view,
    `names both of its frames ${first.view}`);
  return read.frames;
}

// As tfds_builder.studies.matrix: sums of blocks, or repeated pixels, centred, never interpolated.
function toMatrix(pixels, rows, columns) {
  const times = Math.floor(rows / ROWS);
  const pool = times > 1 && rows % times === 0 && columns % times === 0 ? times : 1;
  const repeat = pool > 1
    ? 1 : Math.max(1, Math.min(Math.floor(ROWS / rows), Math.floor(COLUMNS / columns)));
  const factor = repeat / pool;
  const high = Math.round(rows * factor), wide = Math.round(columns * factor);
  // The first row of the matrix that is of the image, or the first of the image that is in it.
  const top = Math.floor(Math.abs(ROWS - high) / 2), left = Math.floor(Math.abs(COLUMNS - wide) / 2);
  const placed = new Int32Array(ROWS * COLUMNS);
  for (let y = 0; y < Math.min(ROWS, high); y += 1) {
    for (let x = 0; x < Math.min(COLUMNS, wide); x += 1) {
      const fromY = y + (high > ROWS ? top : 0), fromX = x + (wide > COLUMNS ? left : 0);
      let counts = 0;
      for (let i = 0; i < pool; i += 1) {
        for (let k = 0; k < pool; k += 1) {
          const row = Math.floor(fromY / repeat) * pool + i;
          counts += pixels[row * columns + Math.floor(fromX / repeat) * pool + k];
        }
      }
      refuseIf(counts > MOST_COUNTS, `holds ${counts} counts in a pixel, more than ${MOST_COUNTS}`);
      placed[(y + (high < ROWS ? top : 0)) * COLUMNS + x + (wide < COLUMNS ? left : 0)] = counts;
    }
  }
  const sum = (of) => of.reduce((total, counts) => total + counts, 0);
  refuseIf((high > ROWS || wide > COLUMNS) && sum(placed) < 0.9 * repeat ** 2 * sum(pixels),
    `is ${rows}x${columns}, and cropping it to ${ROWS}x${COLUMNS} would cut off much of its counts`);
  return placed;
}

// As tfds_builder.studies.quality: whether all that is not empty is about as bright, in blocks of
// 32x32 pixels of the image proper, without the zeros around it.
function isUniform(pixels, rows, columns) {
  let top = rows, bottom = 0, left = columns, right = 0;
  pixels.forEach((counts, n) => {
    if (!counts) return;
    const y = Math.floor(n / columns), x = n % columns;
    top = Math.min(top, y), bottom = Math.max(bottom, y + 1);
    left = Math.min(left, x), right = Math.max(right, x + 1);
  });
  const high = Math.floor((bottom - top) / 32), wide = Math.floor((right - left) / 32);
  if (high < 1 || wide < 1) return false;
  const blocks = new Float64Array(high * wide);
  for (let y = 0; y < 32 * high; y += 1) {
    for (let x = 0; x < 32 * wide; x += 1) {
      blocks[(y >> 5) * wide + (x >> 5)] += pixels[(top + y) * columns + left + x];
    }
  }
  const faint = blocks.slice().sort()[Math.floor(0.95 * blocks.length)] / 5;
  const bright = blocks.filter((one) => one > faint);
  const mean = bright.reduce((total, one) => total + one, 0) / bright.length;
  const spread = Math.sqrt(bright.reduce((total, one) => total + (one - mean) ** 2, 0) / bright.length);
  return spread < 0.2 * mean;
}

// ---- The network.

async function unpacked(name) {
  const element = field(`packed-${name}`);
  const packed = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  element.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function startNetwork() {
  const code = new Blob([await unpacked("module")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(code));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked("wasm")).buffer;
  const session = await ort.InferenceSession.create(await unpacked("model"));
  // Probabilities of one input of the network: a view, or both views of a study.
  return async (views) => {
    const counts = new Int32Array(views.length * ROWS * COLUMNS);
    views.forEach((pixels, n) => pixels && counts.set(pixels, n * ROWS * COLUMNS));
    const shape = about.records === "studies" ? [1, 2, ROWS, COLUMNS] : [1, ROWS, COLUMNS];
    const { probabilities } = await session.run({ counts: new ort.Tensor("int32", counts, shape) });
    return [...probabilities.data];
  };
}

// Of a file's frames: { records: [{ name, probabilities }], probabilities }.
async function ask(network, frames) {
  const records = [];
  if (about.records === "studies") {
    const pair = ["anterior", "posterior"].map((view) => frames.find((one) => one.view === view));
    refuseIf(pair.filter(Boolean).length < frames.length,
      "does not code which view its frames are, which this network has to know");
    const probabilities = await network(pair.map((frame) => frame?.pixels));
    records.push({ name: frames.map(({ view }) => view).join(" and "), probabilities });
  } else {
    for (const frame of frames) {
      records.push({ name: frame.view || "view", probabilities: await network([frame.pixels]) });
    }
  }
  const mean = (n) => records.reduce((sum, one) => sum + one.probabilities[n], 0) / records.length;
  return { records, probabilities: about.classes.map((_, n) => mean(n)) };
}

// ---- The page.

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

const shown = [];

function verdict({ probabilities }) {
  const highest = Math.max(...probabilities), least = Number(field("least").value);
  const label = about.classes[probabilities.indexOf(highest)];
  return highest < least
    ? `No answer: the largest probability, ${highest.toFixed(2)} for ${label}, is below ${least.toFixed(3)}.`
    : `Read as ${label}, probability ${highest.toFixed(2)}.`;
}

// The counts that become 1: the 99th percentile of the pixels that have any.
function brightLevel(pixels) {
  const sorted = pixels.filter((counts) => counts > 0).sort();
  return sorted[Math.floor(0.99 * (sorted.length - 1))];
}

function paint({ canvas, frames }) {
  const wide = Number(field("window").value), low = Number(field("level").value) - wide / 2;
  canvas.width = COLUMNS * frames.length;
  canvas.height = ROWS;
  const painted = new ImageData(canvas.width, ROWS);
  frames.forEach(({ pixels, bright }, n) => {
    pixels.forEach((counts, at) => {
      const share = (Math.sqrt(counts / bright) - low) / wide;
      const place = Math.floor(at / COLUMNS) * canvas.width + n * COLUMNS + (at % COLUMNS);
      painted.data.fill(255 * (1 - Math.min(1, Math.max(0, share))), 4 * place, 4 * place + 3);
      painted.data[4 * place + 3] = 255;
    });
  });
  canvas.getContext("2d").putImageData(painted, 0, 0);
}

function show(name, frames, answer) {
  const section = element("section", "", field("studies"));
  section.className = "study";
  element("h2", name, section);
  const said = element("p", verdict(answer), section);
  said.className = "verdict";
  const table = element("table", "", section);
  const head = element("tr", "", element("thead", "", table));
  const views = answer.records.map((record) => record.name);
  for (const title of ["class", "the study", ...views]) element("th", title, head);
  const body = element("tbody", "", table);
  about.classes.forEach((label, n) => {
    const row = element("tr", "", body);
    element("th", label, row).scope = "row";
    for (const one of [answer, ...answer.records]) {
      const cell = element("td", one.probabilities[n].toFixed(3), row);
      cell.dataset.value = one.probabilities[n];
    }
  });
  element("p", "The study's probabilities are means over its views"
    + (about.calibrated ? "." : "; they are not calibrated."), section).className = "note";
  const figure = element("figure", "", section);
  const canvas = element("canvas", "", figure);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", views.join(", "));
  element("figcaption", `${views.join("; ")}. Dark is many counts, on a square-root scale. `
    + "The picture is not for diagnosis.", figure);
  for (const frame of frames) frame.bright = brightLevel(frame.pixels);
  shown.push({ canvas, frames, said, answer });
  paint(shown.at(-1));
}

function showRefusal(name, reason) {
  const section = element("section", "", field("studies"));
  section.className = "refused";
  element("h2", name, section);
  element("p", `Not read: it ${reason}.`, section).className = "missing";
}

async function readAll(network, files) {
  field("files").disabled = true;
  for (const [n, file] of files.entries()) {
    field("state").textContent = `Reading ${n + 1} of ${files.length}.`;
    try {
      const frames = await readFile(file);
      show(file.name, frames, await ask(network, frames));
    } catch (error) {
      if (!(error instanceof Refusal)) console.error(error);
      showRefusal(file.name,
        error instanceof Refusal ? error.message : `could not be read (${error.message})`);
    }
    // The browser paints what is there before the next file.
    await new Promise((resolve) => setTimeout(resolve));
  }
  field("files").disabled = false;
  field("files").value = "";
  field("state").textContent = `${files.length} read. More can be dropped.`;
}

async function start() {
  const least = field("least");
  for (const [text, value] of [["all", 0], ...Object.entries(about.least).map(
    ([accuracy, value]) => [`right ${100 * accuracy} % of the time on validation studies`, value])]) {
    element("option", text, least).value = value;
  }
  least.addEventListener("input", () => shown.forEach((one) => {
    one.said.textContent = verdict(one.answer);
  }));
  for (const output of document.querySelectorAll(".controls output")) {
    const slider = field(output.htmlFor.value);
    slider.addEventListener("input", () => {
      output.textContent = Number(slider.value).toFixed(2);
      shown.forEach(paint);
    });
  }
  let network;
  try {
    network = await startNetwork();
  } catch (error) {
    field("state").textContent = `This browser cannot run the network: ${error.message}`;
    throw error;
  }
  let last = Promise.resolve();
  const take = (files) => {
    last = last.then(() => readAll(network, files));
  };
  field("files").addEventListener("change", () => take([...field("files").files]));
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      field("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") take([...event.dataTransfer.files]);
    });
  }
  field("files").disabled = false;
  field("state").textContent = "Ready.";
}

start();

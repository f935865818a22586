// The page of ehm serve: an image goes to the server as it is, and what it answers is shown.
// Names, labels and messages are set as text, never as HTML. The API key stays in this script's memory.

import {
  classUnder, colourOfClass, drawMask, drawObjects, objectUnder, percent, placeMask, placeObjects,
} from "./dense.js";
import { drawImage, patchUnder } from "./draw.js";

const NEIGHBOURS = 8;
const SECTIONS = ["classes", "neighbours", "parts", "objects", "mask"];

const at = (id) => document.getElementById(id);
const canvas = at("canvas");

let models = new Map(); // by name, as /v1/about describes them
let indexed = 0; // images of the index
let key = "";
let file = null;
let running = new AbortController(); // of the requests for the image that is shown
let view = null; // the image, its name and size, and the region of it that the model sees
let parts = null; // as /v1/parts gives them
let objects = null; // as /v1/detect gives them, placed on the canvas
let mask = null; // as /v1/segment gives it, with a layer for the canvas
let pointed = null; // the part or the object under the pointer

/** A request to this server; its errors are thrown as the sentence that it answered with. */
async function call(path, options = {}) {
  const headers = { "Content-Type": "application/octet-stream", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    at("key-field").hidden = false;
    at("key").focus();
    throw new Error(key ? "The server does not accept this API key." : "This server needs its API key.");
  }
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error ?? `The server answered ${response.status} ${response.statusText}.`);
}

/** An element with a text, or with others in it. */
function element(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content);
  return made;
}

/** Ask what is served; then answer for the image that is shown, if there is one. */
async function start() {
  at("problem").textContent = "";
  try {
    const served = await (await call("v1/about")).json();
    models = new Map(served.models.map((model) => [model.name, model]));
    indexed = served.index;
  } catch (error) {
    at("problem").textContent = error.message;
    return;
  }
  at("model").replaceChildren(...[...models.keys()].map((name) => new Option(name)));
  at("model-field").hidden = models.size < 2;
  look();
}

function describe(model) {
  const [height, width] = model.image_size;
  if (model.task === "detection") {
    const masks = model.outputs.includes("masks") ? ", with their masks" : "";
    return `${model.name} finds objects of ${model.labels} classes${masks}.`;
  }
  if (model.task === "segmentation") {
    return `${model.name} gives each pixel one of ${model.labels} classes.`;
  }
  const gives = [
    model.outputs.includes("logits") && `${model.labels} classes`,
    model.outputs.includes("features") && "features",
    model.outputs.includes("patches") && "patch features",
  ].filter(Boolean);
  const index = indexed ? ` The index holds ${indexed} images.` : "";
  return `${model.name} sees ${width} × ${height} pixels and gives ${gives.join(", ")}.${index}`;
}

function take(chosen) {
  if (!chosen) {
    at("problem").textContent = "That was not an image file.";
    return;
  }
  file = chosen;
  look();
}

/** Show the image, and all that the chosen model makes of it. */
async function look() {
  const model = models.get(at("model").value);
  if (!model) return;
  at("about").textContent = describe(model);
  if (!file) return;
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const times = [];

  async function ask(what, path, top = "") {
    const started = performance.now();
    const query = `model=${encodeURIComponent(model.name)}${top}`;
    const response = await call(`${path}?${query}`, { method: "POST", body: file, signal });
    const reply = await response.json();
    times.push(`${what} ${Math.round(performance.now() - started)} ms`);
    return reply;
  }

  async function answer(id, absent, show, ...request) {
    const section = at(id);
    const note = section.querySelector(".note");
    section.hidden = false;
    section.querySelector(".answer").hidden = true;
    note.classList.remove("error");
    note.textContent = absent || "Working…";
    if (absent) return;
    try {
      await show(await ask(...request));
      note.textContent = "";
      section.querySelector(".answer").hidden = false;
    } catch (error) {
      if (signal.aborted) return;
      note.textContent = error.message;
      note.classList.add("error");
    }
  }

  at("problem").textContent = "";
  at("timing").textContent = "Working…";
  try {
    const seen = await ask("image", "v1/view");
    const image = new Image();
    image.src = seen.preview;
    await image.decode();
    if (signal.aborted) return;
    view = { ...seen, image, name: file.name };
    [parts, objects, mask, pointed] = [null, null, null, null];
  } catch (error) {
    if (signal.aborted) return;
    at("problem").textContent = `${file.name}: ${error.message}`;
    at("timing").textContent = "";
    return;
  }
  document.querySelector("main").classList.remove("empty");
  at("picture").hidden = false;
  caption(model);
  for (const id of SECTIONS) at(id).hidden = true;
  draw();

  // the slider of the colours stands where there are some
  const coloured = { detection: "objects", segmentation: "mask" }[model.task] ?? "parts";
  at(coloured).querySelector(".hint").before(at("tint"));
  if (model.task === "detection") {
    await answer("objects", "", showObjects, "objects", "v1/detect");
  } else if (model.task === "segmentation") {
    await answer("mask", "", showMask, "mask", "v1/segment");
  } else {
    await Promise.all([
      answer(
        "classes",
        !model.outputs.includes("logits") && "This model gives features and no classes.",
        showClasses, "classes", "v1/classify", "&top=5",
      ),
      answer(
        "neighbours",
        !model.neighbours && whyNoNeighbours(model),
        (reply) => showNeighbours(reply, signal), "neighbours", "v1/neighbours", `&top=${NEIGHBOURS}`,
      ),
      answer(
        "parts",
        !model.outputs.includes("patches") &&
          "Parts need patch features: ehm export CHECKPOINT --head multi writes a bundle that gives them.",
        showParts, "parts", "v1/parts",
      ),
    ]);
  }
  if (!signal.aborted) at("timing").textContent = `Answered in: ${times.join(", ")}.`;
}

function whyNoNeighbours(model) {
  if (!model.outputs.includes("features")) {
    return "Neighbours need features: ehm export CHECKPOINT --head multi writes a bundle that gives them.";
  }
  return indexed
    ? "The index was made with another model: its features do not fit this one."
    : "Neighbours need an index: ehm predict BUNDLE IMAGES --out DIR makes one for ehm serve BUNDLE --index DIR.";
}

function caption(model) {
  const [width, height] = view.size;
  const [left, top] = view.region;
  const [down, across] = model.image_size;
  const cut = left >= 1 || top >= 1 ? " What is hatched is cut away." : "";
  const part = view.shown[2] < width || view.shown[3] < height ? " Of that, only what is near is shown." : "";
  const how = {
    detection: `The model sees all of it, resized to fit into ${across} × ${down} pixels.`,
    segmentation: `The model sees all of it, in windows of ${across} × ${down} pixels.`,
  }[model.task] ?? `The model sees its centre, resized to ${across} × ${down} pixels.${cut}${part}`;
  at("seen").textContent = `${view.name}, ${width} × ${height} pixels. ${how}`;
}

function showClasses(reply) {
  const rows = reply.classes.map(({ label, probability }) => {
    const bar = element("div", "bar");
    bar.style.width = `${100 * probability}%`;
    const share = element("span", "number", percent(probability));
    const row = element("li", "", element("span", "", label), share, element("div", "track", bar));
    // of several labels those that reach their thresholds, else the likeliest class
    const answers = reply.present ?? [reply.classes[0].label];
    row.classList.toggle("answer", answers.includes(label));
    return row;
  });
  at("classes").querySelector("ol").replaceChildren(...rows);
}

function showNeighbours(reply, signal) {
  const rows = reply.neighbours.map(({ number, name, similarity }) => {
    const frame = element("div", "missing", "…");
    call(`v1/index/${number}`, { signal })
      .then((response) => response.blob())
      .then((blob) => {
        const picture = new Image();
        picture.alt = name;
        picture.onload = () => URL.revokeObjectURL(picture.src);
        picture.src = URL.createObjectURL(blob);
        frame.replaceWith(picture);
      })
      .catch((error) => frame.replaceChildren(error.message));
    const caption = element("span", "name", name);
    caption.title = name;
    return element("li", "", frame, element("span", "number", similarity.toFixed(3)), caption);
  });
  at("neighbours").querySelector("ol").replaceChildren(...rows);
}

function showParts(reply) {
  parts = reply;
  const slider = at("level");
  slider.max = parts.levels.length - 1;
  slider.value = Math.round(0.4 * slider.max);
  draw();
}

function showObjects(reply) {
  objects = placeObjects(reply.objects, canvas, view.size);
  listObjects();
}

/** The objects whose score is at least the chosen one. */
function likely() {
  return objects.filter(({ score }) => 100 * score >= at("least").value);
}

function listObjects() {
  pointed = null;
  const rows = likely().map((object) => {
    const row = element("li", "", swatch(object.colour), object.label, element("span", "number", percent(object.score)));
    row.addEventListener("pointerenter", () => point(object));
    row.addEventListener("pointerleave", () => point(null));
    return row;
  });
  at("objects").querySelector("ol").replaceChildren(...rows);
  const count = `${objects.length} ${objects.length === 1 ? "object" : "objects"}`;
  at("found").textContent = objects.length
    ? `${rows.length} of ${count}, of a score of ${at("least").value} % or more`
    : "The model finds no object in this image.";
  draw();
}

async function showMask(reply) {
  const layer = await placeMask(reply.mask, canvas);
  mask = { ...reply, layer };
  const rows = reply.classes.map(({ label, share }) =>
    element("li", "", swatch(colourOfClass(reply.labels.indexOf(label))), label, element("span", "number", percent(share))));
  at("mask").querySelector("ol").replaceChildren(...rows);
  draw();
}

/** A square of a colour, before the name of what has it. */
function swatch(colour) {
  const square = element("span", "swatch");
  square.style.background = colour;
  return square;
}

/** The partition at the chosen depth. */
function chosen() {
  return parts.levels[parts.levels.length - 1 - at("level").value];
}

/** How strong the colours over the image are, from 0 to 1; without any there is only the image. */
function strength() {
  return at("strength").value / 100;
}

function point(what) {
  if (what === pointed) return;
  pointed = what;
  draw();
}

/** Draw the image and what was found in it, and say what that is. */
function draw() {
  let level = null;
  let words = `The image ${view.name}`;
  if (parts) {
    level = chosen();
    const count = `${level.parts} ${level.parts === 1 ? "part" : "parts"}`;
    const marked = level.ids.filter((id) => id === pointed).length;
    const size = marked ? `; the marked one: ${marked} of ${level.ids.length} patches` : "";
    at("cut").textContent = `${count} at level ${level.level} of ${parts.height}${size}`;
    at("level").setAttribute("aria-valuetext", at("cut").textContent);
    if (strength()) words += `, divided into ${count}`;
    else level = null;
  }
  drawImage(canvas, view, level && { ...parts, ids: level.ids, strength: strength(), pointed });
  if (objects && strength()) {
    drawObjects(canvas, likely(), strength(), pointed);
    words += `, with ${likely().length} objects`;
  }
  if (mask && strength()) {
    drawMask(canvas, mask.layer, strength());
    words += `, with the classes ${mask.classes.map(({ label }) => label).join(", ")}`;
  }
  canvas.setAttribute("aria-label", words);
}

at("settings").addEventListener("submit", (event) => event.preventDefault());
at("model").addEventListener("change", look);
at("key").addEventListener("change", () => {
  key = at("key").value;
  start();
});
at("level").addEventListener("input", () => {
  pointed = null;
  draw();
});
at("strength").addEventListener("input", draw);
at("least").addEventListener("input", listObjects);
for (const kind of ["pointermove", "pointerdown"]) {
  canvas.addEventListener(kind, (event) => {
    if (!strength()) return;
    if (parts) point(chosen().ids[patchUnder(event, view, parts.grid)] ?? null);
    if (objects) point(objectUnder(event, canvas, likely()));
    if (mask) at("under").textContent = `Here: ${mask.labels[classUnder(event, mask.layer)]}`;
  });
}
canvas.addEventListener("pointerleave", () => point(null));
at("file").addEventListener("change", () => {
  if (at("file").files.length) take(at("file").files[0]);
  at("file").value = ""; // so that the same file, changed, can be chosen again
});
document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
start();

// What detectors and segmenters find, drawn over an image on a canvas: boxes with masks, or a class for each pixel.

const COLOURS = [
  "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe",
];

/** A canvas that is not shown. */
function layerOf(width, height) {
  const layer = document.createElement("canvas");
  layer.width = Math.max(1, width);
  layer.height = Math.max(1, height);
  return layer;
}

/** The objects of /v1/detect with a colour each, their boxes in pixels of the canvas and their masks as layers. */
export function placeObjects(objects, canvas, [width, height]) {
  const across = canvas.width / width;
  const down = canvas.height / height;
  return objects.map((object, number) => {
    const [left, top, right, bottom] = object.box;
    const box = [left * across, top * down, (right - left) * across, (bottom - top) * down];
    const colour = COLOURS[number % COLOURS.length];
    return { ...object, box, colour, layer: object.mask ? maskLayer(object.mask, box, canvas, colour) : null };
  });
}

/** A mask in COCO's run-length code (down the columns, zeros first), painted where its box lies on the canvas. */
function maskLayer({ size: [rows, columns], counts }, box, canvas, colour) {
  const inside = new Uint8Array(rows * columns);
  let place = 0;
  counts.forEach((count, number) => {
    if (number % 2) inside.fill(1, place, place + count);
    place += count;
  });
  // the mask may reach a pixel beyond the box
  const left = Math.max(0, Math.floor(box[0]) - 2);
  const top = Math.max(0, Math.floor(box[1]) - 2);
  const layer = layerOf(Math.ceil(box[2]) + 4, Math.ceil(box[3]) + 4);
  const context = layer.getContext("2d");
  const pixels = context.createImageData(layer.width, layer.height);
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  for (let y = 0; y < layer.height; y += 1) {
    const row = Math.floor(((top + y + 0.5) * rows) / canvas.height);
    for (let x = 0; x < layer.width; x += 1) {
      const column = Math.floor(((left + x + 0.5) * columns) / canvas.width);
      if (row < rows && column < columns && inside[column * rows + row]) {
        pixels.data.set([red, green, blue, 255], 4 * (y * layer.width + x));
      }
    }
  }
  context.putImageData(pixels, 0, 0);
  return { layer, left, top };
}

/** Draw objects, of which one may be pointed at: then the others are left out. The likeliest one lies on top. */
export function drawObjects(canvas, objects, strength, pointed) {
  const context = canvas.getContext("2d");
  const unit = canvas.width / (canvas.clientWidth || canvas.width); // of the canvas for a pixel of the page
  const high = 22 * unit;
  const chosen = pointed === null ? objects : objects.filter((object) => object === pointed);
  for (const { layer, box, colour, label, score } of [...chosen].reverse()) {
    const [left, top, width, height] = box;
    if (layer) {
      context.globalAlpha = strength;
      context.drawImage(layer.layer, layer.left, layer.top);
    }
    context.globalAlpha = 1;
    for (const [line, stroke] of [[4, "#000a"], [2, colour]]) {
      context.lineWidth = line * unit;
      context.strokeStyle = stroke;
      context.strokeRect(left, top, width, height);
    }
    context.font = `${14 * unit}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const words = `${label} ${percent(score)}`;
    const wide = context.measureText(words).width + 10 * unit;
    // above the box if there is room, else inside; never beyond the right edge
    const x = Math.max(0, Math.min(left, canvas.width - wide));
    const y = top >= high ? top - high : top;
    context.fillStyle = "#000c";
    context.fillRect(x, y, wide, high);
    context.fillStyle = colour;
    context.fillText(words, x + 5 * unit, y + high / 2);
  }
}

/** The object under the pointer, the smallest of several; null if there is none. */
export function objectUnder(event, canvas, objects) {
  const x = (event.offsetX * canvas.width) / canvas.clientWidth;
  const y = (event.offsetY * canvas.height) / canvas.clientHeight;
  const hit = objects.filter(({ box: [left, top, width, height] }) =>
    x >= left && x <= left + width && y >= top && y <= top + height);
  hit.sort((one, other) => one.box[2] * one.box[3] - other.box[2] * other.box[3]);
  return hit[0] ?? null;
}

/** The mask of /v1/segment, a PNG with a colour for each class, at the size of the canvas. */
export async function placeMask(mask, canvas) {
  const image = new Image();
  image.src = `data:image/png;base64,${mask}`;
  await image.decode();
  const layer = layerOf(canvas.width, canvas.height);
  const context = layer.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false; // between two classes there is no third one
  context.drawImage(image, 0, 0, layer.width, layer.height);
  return layer;
}

/** Draw the mask over the image. */
export function drawMask(canvas, layer, strength) {
  const context = canvas.getContext("2d");
  context.globalAlpha = strength;
  context.drawImage(layer, 0, 0);
  context.globalAlpha = 1;
}

/** The number of the class under the pointer. */
export function classUnder(event, layer) {
  const x = Math.min(layer.width - 1, Math.floor((event.offsetX * layer.width) / event.target.clientWidth));
  const y = Math.min(layer.height - 1, Math.floor((event.offsetY * layer.height) / event.target.clientHeight));
  const colour = layer.getContext("2d").getImageData(x, y, 1, 1).data;
  let number = 0;
  for (let bit = 0; bit < 8; bit += 1) number |= ((colour[bit % 3] >> (7 - Math.floor(bit / 3))) & 1) << bit;
  return number;
}

/** The colour of a class in PASCAL VOC's palette, in which the server writes masks: its bits, spread over the three. */
export function colourOfClass(number) {
  const colour = [0, 0, 0];
  for (let bit = 0; bit < 8; bit += 1) colour[bit % 3] |= ((number >> bit) & 1) << (7 - Math.floor(bit / 3));
  return `rgb(${colour.join(", ")})`;
}

/** A share as a percentage with one decimal. */
export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

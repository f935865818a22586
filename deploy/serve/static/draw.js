// An image on a canvas: parts over the region that a model sees of it, and what is cut away hatched.

const SIDE = 1280; // pixels of the canvas along the longer side of the image

/**
 * Draw a view ({image, region, shown}); parts ({grid, ids, colours, strength, pointed}) may be null, and pointed too.
 * A strength of 1 leaves grey tones of the image below the tints, one near 0 hardly changes it.
 */
export function drawImage(canvas, view, parts) {
  const [fromLeft, fromTop, width, height] = view.shown;
  const scale = SIDE / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(view.image, 0, 0, canvas.width, canvas.height);
  const [left, top, wide, high] = view.region;
  const region = [left - fromLeft, top - fromTop, wide, high].map((length) => length * scale);
  if (parts) paint(context, region, parts);
  hatch(context, region);
}

/** The number of the patch, row by row, that lies under the pointer; -1 outside the region. */
export function patchUnder(event, view, [down, across]) {
  const [left, top, width, height] = view.region;
  const [fromLeft, fromTop, wide] = view.shown;
  const scale = wide / event.target.clientWidth;
  const column = Math.floor(((event.offsetX * scale + fromLeft - left) / width) * across);
  const row = Math.floor(((event.offsetY * scale + fromTop - top) / height) * down);
  return column >= 0 && column < across && row >= 0 && row < down ? row * across + column : -1;
}

function paint(context, [left, top, width, height], { grid: [down, across], ids, colours, strength, pointed }) {
  const x = (column) => Math.round(left + (column * width) / across);
  const y = (row) => Math.round(top + (row * height) / down);
  const sizes = new Map();
  for (const id of ids) sizes.set(id, (sizes.get(id) ?? 0) + 1);

  // as ehm inspect draws them: below the tints lies the image in grey, without its darkest tones
  for (const [operation, colour] of [["saturation", "#808080"], ["source-over", "#ffffff40"]]) {
    context.globalCompositeOperation = operation;
    context.globalAlpha = strength;
    context.fillStyle = colour;
    context.fillRect(x(0), y(0), x(across) - x(0), y(down) - y(0));
  }
  const contours = new Path2D();
  ids.forEach((id, patch) => {
    const [row, column] = [Math.floor(patch / across), patch % across];
    context.globalAlpha = strength * (sizes.get(id) === 1 ? 0.2 : 0.55);
    context.fillStyle = colours[id];
    context.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    if (pointed !== null && pointed !== id) {
      context.globalAlpha = 0.5;
      context.fillStyle = "#000";
      context.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    }
    if (column + 1 < across && ids[patch + 1] !== id) {
      contours.moveTo(x(column + 1), y(row));
      contours.lineTo(x(column + 1), y(row + 1));
    }
    if (row + 1 < down && ids[patch + across] !== id) {
      contours.moveTo(x(column), y(row + 1));
      contours.lineTo(x(column + 1), y(row + 1));
    }
  });
  context.globalAlpha = 1;
  context.lineCap = "square";
  for (const [colour, line] of [["#0008", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.stroke(contours);
  }
}

function hatch(context, [left, top, width, height]) {
  const { canvas } = context;
  const outside = new Path2D();
  outside.rect(0, 0, canvas.width, canvas.height);
  outside.rect(left, top, width, height);
  context.save();
  context.clip(outside, "evenodd");
  context.fillStyle = "#808080b0";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = "#ffffff60";
  context.lineWidth = 3;
  context.beginPath();
  for (let start = -canvas.height; start < canvas.width; start += 24) {
    context.moveTo(start, canvas.height);
    context.lineTo(start + canvas.height, 0);
  }
  context.stroke();
  context.restore();
}

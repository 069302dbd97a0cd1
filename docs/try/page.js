"use strict";
// The page: a drawing or a picture becomes digits (prepare.js), and each network reads them.
// DATA is what docs/drawing.py puts in: the networks, the datasets and their test images.

const DATA = {/* data */};
const byId = (id) => document.getElementById(id);
const paperCanvas = byId("paper"), pen = paperCanvas.getContext("2d", { willReadFrequently: true });
const strokes = []; // of {width, points: [[x, y], …]}
let picture = null; // an uploaded one, below the strokes
let shown = []; // of {box, ink} of the drawing, or one {sample} of a dataset
let chosen = 0, cursor = [200, 200], penDown = false;

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return the layers [{weights, biases}] of a network, from whole numbers with a scale for each row. */
async function unpack({ sizes, weights }) {
  const bytes = await inflate(weights), layers = [];
  let start = 0;
  for (let k = 0; k + 1 < sizes.length; k++) {
    const [inputs, outputs] = [sizes[k], sizes[k + 1]], count = inputs * outputs;
    const floats = new Float32Array(bytes.slice(start + 3 * count, start + 3 * count + 8 * outputs).buffer);
    const values = new Float32Array(count);
    for (let j = 0; j < count; j++) {
      const at = start + j, zigzag = (bytes[at] << 16) | (bytes[at + count] << 8) | bytes[at + 2 * count];
      values[j] = ((zigzag >> 1) ^ -(zigzag & 1)) * floats[Math.floor(j / inputs)];
    }
    layers.push({ weights: values, biases: floats.subarray(outputs) });
    start += 3 * count + 8 * outputs;
  }
  return layers;
}

/** Return the logits of an image: linear layers with a (leaky) ReLU between them. */
function forward({ layers, slope }, image) {
  let values = image;
  layers.forEach(({ weights, biases }, depth) => {
    const result = new Float32Array(biases.length);
    for (let k = 0, j = 0; k < result.length; k++) {
      let sum = biases[k];
      for (let i = 0; i < values.length; i++, j++) sum += weights[j] * values[i];
      result[k] = depth + 1 < layers.length && sum < 0 ? slope * sum : sum;
    }
    values = result;
  });
  return values;
}

function softmax(logits) {
  const most = greatest(logits), powers = Array.from(logits, (value) => Math.exp(value - most));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / total);
}

const percent = (p) =>
  p > 0.999 && p < 1 ? "> 99.9 %" : p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Draw an image into a canvas of its size. */
function imageCanvas(image) {
  const canvas = element("canvas", { width: image.width, height: image.height });
  const pixels = new ImageData(image.width, image.height);
  image.data.forEach((value, k) => pixels.data.set([255 * value, 255 * value, 255 * value, 255], 4 * k));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Return one of the digits shown in a dataset's form. */
function inForm(digit, form) {
  if (!digit.sample) return prepare(digit.ink, form);
  const same = ["width", "height", "digit_size"].every((name) => digit.form[name] === form[name]);
  return same ? digit.sample : refit(digit.sample, form);
}

function redraw() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, 400, 400);
  if (picture) pen.drawImage(picture, ...fitted(picture));
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = "#000";
  for (const { width, points } of strokes) {
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(...points[0]);
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
  }
}

/** Return left, top, width and height of a picture in the middle of the paper. */
function fitted({ width, height }) {
  const scale = 400 / Math.max(width, height);
  return [200 - (scale * width) / 2, 200 - (scale * height) / 2, scale * width, scale * height];
}

/** Read what is on the paper. */
function read() {
  redraw();
  shown = [];
  chosen = 0;
  if (!strokes.length && !picture) return show("Draw a digit.");
  // A picture alone is read from its own pixels, without the paper around it.
  const alone = picture && !strokes.length;
  const source = alone ? picture.getContext("2d") : pen, { width, height } = source.canvas;
  try {
    shown = readDigits(toGray(source.getImageData(0, 0, width, height)));
  } catch (error) {
    return show(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  }
  const [left, top, across, down] = alone ? fitted(picture) : [0, 0, 400, 400];
  pen.strokeStyle = "#d55e00";
  pen.lineWidth = 2;
  for (const { box } of shown.length > 1 ? shown : []) {
    const x = left + across * box.left, y = top + down * box.top;
    pen.strokeRect(x - 3, y - 3, across * (box.right - box.left) + 6, down * (box.bottom - box.top) + 6);
  }
  show();
}

/** Show the answers for the digits in `shown`, or a sentence where there are none. */
function show(sentence) {
  const forms = {};
  for (const { dataset } of DATA.networks) {
    const form = DATA.datasets[dataset];
    forms[`${form.width} × ${form.height}`] ??= shown.map((digit) => inForm(digit, form));
  }
  const answers = DATA.networks.map((network) => {
    const { width, height } = DATA.datasets[network.dataset];
    return forms[`${width} × ${height}`].map((image) => softmax(forward(network, image.data)));
  });
  byId("seen").replaceChildren(...(shown.length ? Object.entries(forms) : []).map(([size, images]) =>
    element("figure", {}, imageCanvas(images[chosen]), element("figcaption", {}, `seen: ${size}`))));
  byId("digits").replaceChildren(...(shown.length > 1 ? shown : []).map((_, k) =>
    element("button", { ariaPressed: String(k === chosen), onclick: () => { chosen = k; show(); } }, `digit ${k + 1}`)));
  byId("answers").replaceChildren(...DATA.networks.map((network, n) => card(network, answers[n])));
  byId("status").textContent = sentence ?? summary(answers);
}

const likeliest = (row) => row.indexOf(Math.max(...row));

/** Say what the networks read, in a sentence. */
function summary(answers) {
  const votes = new Map();
  DATA.networks.forEach((network, n) => {
    const sure = answers[n].every((row) => Math.max(...row) >= network.threshold);
    const digits = answers[n].map((row) => network.classes[likeliest(row)]).join(" ");
    if (sure) votes.set(digits, [...(votes.get(digits) ?? []), `${network.name} ${network.recipe}`]);
  });
  const label = shown[0].label ? `${shown[0].label} ` : "";
  if (!votes.size) return `${label}No network is sure.`;
  return label + [...votes].map(([digits, names]) => `${digits}: ${names.join(", ")}.`).join(" ");
}

/** Return a network's answer as a card with a bar for each of its digits. */
function card(network, rows) {
  const row = rows[chosen], unsure = row && Math.max(...row) < network.threshold;
  const reading = rows.map((each) => network.classes[likeliest(each)]).join(" ");
  const title = element("h3", {}, `${network.name} ${network.recipe}`, element("b", {}, reading));
  const note = unsure ? "not sure: perhaps none of its digits" : `knows ${network.classes[0]} to ${network.classes.at(-1)}`;
  return element("article", { className: unsure ? "unsure" : "" }, title, element("p", {}, note),
    ...network.classes.map((digit, k) => {
      const bar = element("i", { ariaHidden: "true" });
      bar.style.width = `${100 * (row?.[k] ?? 0)}%`;
      return element("div", { className: "bar" }, element("span", {}, String(digit)),
        element("span", {}, bar), element("span", {}, row ? percent(row[k]) : ""));
    }));
}

/** Replace what is on the paper by a picture from a file. */
async function open(file) {
  byId("status").textContent = "Reading the picture …";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // decodes beside this thread, and rotates by EXIF
  } catch {
    return (byId("status").textContent = `${file.name || "This"} is no picture that this browser reads (JPEG or PNG work everywhere).`);
  }
  const megapixels = (bitmap.width * bitmap.height) / 1e6;
  if (megapixels > 100) {
    return (byId("status").textContent = `${bitmap.width} x ${bitmap.height} pixels are more than 100 megapixels (reduce the picture).`);
  }
  const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  picture = element("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const context = picture.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, picture.width, picture.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, picture.width, picture.height);
  bitmap.close();
  strokes.length = 0;
  read();
}

/** Show the test images of each dataset as buttons. */
async function listSamples() {
  for (const [name, form] of Object.entries(DATA.datasets)) {
    const bytes = await inflate(form.images), size = form.width * form.height;
    const list = element("div");
    form.samples.forEach(({ digit, errors }, k) => {
      const sample = makeImage(form.width, form.height, Float32Array.from(bytes.subarray(k * size, (k + 1) * size), (value) => value / 255));
      const label = `Test image: a ${digit}${errors ? `, taken for ${errors}` : ""}.`;
      const choose = () => {
        clear();
        pen.imageSmoothingEnabled = false;
        pen.drawImage(imageCanvas(mapped(sample, (value) => 1 - value)), 60, 60, 280, 280);
        [shown, chosen] = [[{ sample, form, label }], 0];
        show();
      };
      list.append(element("button", { ariaLabel: label, title: label, onclick: choose }, imageCanvas(sample)));
    });
    const missing = form.samples.length ? [] : [element("p", { className: "small" }, "These images were not at hand when the page was made.")];
    byId("samples").append(element("h3", {}, name), list, ...missing);
  }
}

function clear() {
  strokes.length = 0;
  picture = null;
  read();
}

function undo() {
  if (strokes.length) strokes.pop();
  else picture = null;
  read();
}

const place400 = (event) => {
  const box = paperCanvas.getBoundingClientRect();
  return [((event.clientX - box.left) * 400) / box.width, ((event.clientY - box.top) * 400) / box.height];
};

function begin(point) {
  strokes.push({ width: Number(byId("pen").value), points: [point] });
  redraw();
}

function extend(point) {
  strokes.at(-1).points.push(point);
  redraw();
}

paperCanvas.onpointerdown = (event) => {
  if (event.button) return;
  paperCanvas.setPointerCapture(event.pointerId);
  begin(place400(event));
};
paperCanvas.onpointermove = (event) => {
  if (paperCanvas.hasPointerCapture(event.pointerId)) (event.getCoalescedEvents?.() ?? [event]).forEach((each) => extend(place400(each)));
};
paperCanvas.onlostpointercapture = read;
paperCanvas.onkeydown = (event) => {
  const step = event.shiftKey ? 2 : 10;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (move) cursor = cursor.map((value, k) => clip(value + move[k], 0, 400));
  else if (event.key === " ") penDown = !penDown;
  else return;
  event.preventDefault();
  if (event.key === " " && penDown) begin(cursor);
  else if (penDown) extend(cursor);
  else if (event.key === " ") return read();
  else redraw();
  pen.lineWidth = 2;
  pen.strokeStyle = "#d55e00";
  pen.strokeRect(cursor[0] - 8, cursor[1] - 8, 16, 16);
};
byId("undo").onclick = undo;
byId("clear").onclick = clear;
byId("file").onchange = ({ target }) => { if (target.files[0]) open(target.files[0]); target.value = ""; };
document.onkeydown = (event) => { if ((event.ctrlKey || event.metaKey) && event.key === "z") undo(); };
document.onpaste = ({ clipboardData }) => { if (clipboardData.files[0]) open(clipboardData.files[0]); };
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]); };

redraw();
Promise.all(DATA.networks.map(async (network) => { network.layers = await unpack(network); }))
  .then(() => { read(); return listSamples(); });

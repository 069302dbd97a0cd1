"use strict";
// The page: a drawing or a picture becomes digits (prepare.js), and each network reads them.
// DATA is what docs/drawing.py puts in: the networks, the datasets and their test images.

const DATA = {/* data */};
const byId = (id) => document.getElementById(id);
const paperCanvas = byId("paper"), pen = paperCanvas.getContext("2d", { willReadFrequently: true });
let strokes = []; // of {width, points: [[x, y], …]}
let picture = null; // an uploaded one, below the strokes
let stroke = null; // the one that is being drawn
const past = []; // {strokes, picture} before each change
let shown = []; // of {box, ink} of the drawing, or one {sample} of a dataset
let chosen = 0, cursor = [200, 200], waiting = 0, opened = 0, ready = false;

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
  pen.imageSmoothingEnabled = true; // a test image turned it off
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

/** Read what is on the paper, when nothing was drawn for a moment: it takes a tenth of a second. */
function readSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(read, 150);
}

function read() {
  if (!ready || stroke) return;
  redraw();
  [shown, chosen] = [[], 0];
  if (!strokes.length && !picture) return show("Draw a digit.");
  // A picture alone is read from its own pixels, a drawing with white paper around it.
  const alone = picture && !strokes.length;
  const source = alone ? picture.getContext("2d") : pen, { width, height } = source.canvas;
  const gray = toGray(source.getImageData(0, 0, width, height)), margin = alone ? 0 : 200;
  try {
    shown = readDigits(padded(gray, margin, 1));
  } catch (error) {
    return show(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  }
  const [left, top, across, down] = alone ? fitted(picture) : [-margin, -margin, 400 + 2 * margin, 400 + 2 * margin];
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
    element("figure", {}, Object.assign(imageCanvas(images[chosen]), { role: "img", ariaLabel: `the digit as the networks see it, ${size} pixels` }),
      element("figcaption", {}, `seen: ${size}`))));
  const choose = (k) => { chosen = k; show(); byId("digits").children[k].focus(); };
  byId("digits").replaceChildren(...(shown.length > 1 ? shown : []).map((_, k) =>
    element("button", { ariaPressed: String(k === chosen), onclick: () => choose(k) }, `digit ${k + 1}`)));
  byId("answers").replaceChildren(...DATA.networks.map((network, n) => card(network, answers[n])));
  byId("status").textContent = sentence ?? summary(answers);
}

/** Return what a network reads, with "?" after each digit that it is not sure of. */
function reading(network, rows) {
  return rows.map((row) => {
    const most = Math.max(...row);
    return `${network.classes[row.indexOf(most)]}${most < network.threshold ? "?" : ""}`;
  }).join(" ");
}

/** Say what the networks that are sure read: most of them first. */
function summary(answers) {
  const votes = new Map();
  DATA.networks.forEach((network, n) => {
    const digits = reading(network, answers[n]), known = `${network.classes[0]} to ${network.classes.at(-1)}`;
    const text = `${digits} (of ${known})`;
    if (!digits.includes("?")) votes.set(text, [...(votes.get(text) ?? []), `${network.name} ${network.recipe}`]);
  });
  const sure = [...votes].sort(([, a], [, b]) => b.length - a.length).map(([text, names]) => `${text}: ${names.join(", ")}.`);
  return [shown[0].label, ...(sure.length ? sure : [`No network is sure${shown.length > 1 ? " of every digit" : ""}.`])].filter(Boolean).join(" ");
}

/** Return a network's answer as a card with a bar for each of its digits. */
function card(network, rows) {
  const row = rows[chosen], unsure = row && Math.max(...row) < network.threshold;
  const answer = element("b", {}, ...rows.flatMap((each, k) => {
    const text = reading(network, [each]);
    return [k ? " " : "", element("span", { className: text.endsWith("?") ? "unsure" : "" }, text)];
  }));
  const name = `${network.name} ${network.recipe}`;
  const unknown = [..."0123456789"].filter((digit) => !network.classes.includes(digit));
  const known = unknown.length && unknown.length < 10 ? `knows no ${unknown.join(", ")}` : `knows ${network.classes.join(", ")}`;
  const note = unsure ? "not sure: perhaps none of these" : known;
  const made = element("article", {}, element("h3", {}, name, answer), element("p", {}, note),
    ...network.classes.map((label, k) => {
      const bar = element("i", { ariaHidden: "true" });
      bar.style.width = `${100 * (row?.[k] ?? 0)}%`;
      return element("div", { className: "bar" }, element("span", {}, label),
        element("span", {}, bar), element("span", {}, row ? percent(row[k]) : ""));
    }));
  const longest = Math.max(...network.classes.map((label) => label.length));
  made.style.setProperty("--label", `${Math.min(0.25 + 0.55 * longest, 5)}rem`);
  return made;
}

/** Replace what is on the paper by a picture from a file. */
async function open(file) {
  const number = ++opened, complain = (text) => (byId("status").textContent = `${text} The drawing is as before.`);
  byId("status").textContent = "Reading the picture …";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // decodes beside this thread, and rotates by EXIF
  } catch {
    return number === opened && complain(`${file.name || "This"} is no picture that this browser reads (JPEG or PNG work everywhere).`);
  }
  if (number !== opened) return; // another one was given since
  const { width, height } = bitmap;
  if (width * height > 1e8) return complain(`${width} x ${height} pixels are more than 100 megapixels (reduce the picture).`);
  const scale = Math.min(1, 1024 / Math.max(width, height));
  const canvas = element("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  // Transparent pixels become white under dark ink and black under bright ink.
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let [bright, weight] = [0, 1e-9];
  for (let k = 0; k < data.length; k += 4) { bright += (data[k] + data[k + 1] + data[k + 2]) * data[k + 3]; weight += 3 * data[k + 3]; }
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = bright / weight < 128 ? "#fff" : "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  change([], canvas);
  read();
}

/** Show the test images of each dataset as buttons. */
async function listSamples() {
  for (const [name, form] of Object.entries(DATA.datasets)) {
    const bytes = await inflate(form.images), size = form.width * form.height;
    const list = element("div");
    form.samples.forEach(({ name, errors }, k) => {
      const sample = makeImage(form.width, form.height, Float32Array.from(bytes.subarray(k * size, (k + 1) * size), (value) => value / 255));
      const label = `Test image: ${name}${errors ? `; in its evaluation ${errors}` : ""}.`;
      const choose = () => {
        change([], null);
        redraw();
        pen.imageSmoothingEnabled = false;
        pen.drawImage(imageCanvas(mapped(sample, (value) => 1 - value)), 60, 60, 280, 280);
        [shown, chosen] = [[{ sample, form, label }], 0];
        show();
        paperCanvas.scrollIntoView({ block: "nearest" });
      };
      list.append(element("button", { className: errors && "error", ariaLabel: label, title: label, onclick: choose }, imageCanvas(sample)));
    });
    const missing = form.samples.length ? [] : [element("p", { className: "small" }, "These images were not at hand when the page was made.")];
    byId("samples").append(element("h3", {}, name), list, ...missing);
  }
}

/** Replace what is on the paper, so that it can be undone. */
function change(newStrokes, newPicture) {
  clearTimeout(waiting);
  past.push({ strokes, picture });
  [strokes, picture, stroke] = [newStrokes, newPicture, null];
}

function undo() {
  clearTimeout(waiting);
  ({ strokes, picture } = past.pop() ?? { strokes: [], picture: null });
  stroke = null;
  read();
}

const place400 = (event) => {
  const box = paperCanvas.getBoundingClientRect();
  return [((event.clientX - box.left) * 400) / box.width, ((event.clientY - box.top) * 400) / box.height];
};

function begin(point) {
  const begun = { width: Number(byId("pen").value), points: [point] };
  change([...strokes, begun], picture);
  stroke = begun;
  redraw();
}

function extend(point) {
  stroke?.points.push(point);
  redraw();
}

function end() {
  stroke = null;
  readSoon();
}

paperCanvas.onpointerdown = (event) => {
  if (event.button || !event.isPrimary) return;
  paperCanvas.setPointerCapture(event.pointerId);
  begin(place400(event));
};
paperCanvas.onpointermove = (event) => {
  if (paperCanvas.hasPointerCapture(event.pointerId)) (event.getCoalescedEvents?.() ?? [event]).forEach((each) => extend(place400(each)));
};
paperCanvas.onlostpointercapture = end;
paperCanvas.onkeydown = (event) => {
  const step = event.shiftKey ? 2 : 10;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  if (move) {
    cursor = cursor.map((value, k) => clip(value + move[k], 0, 400));
    extend(cursor);
  } else if (stroke) return end();
  else begin(cursor);
  pen.lineWidth = 2;
  pen.strokeStyle = "#d55e00";
  pen.strokeRect(cursor[0] - 8, cursor[1] - 8, 16, 16);
};
byId("undo").onclick = undo;
byId("clear").onclick = () => { change([], null); read(); };
byId("file").onchange = ({ target }) => { if (target.files[0]) open(target.files[0]); target.value = ""; };
document.onkeydown = (event) => { if ((event.ctrlKey || event.metaKey) && event.key === "z") undo(); };
document.onpaste = ({ clipboardData }) => { if (clipboardData.files[0]) open(clipboardData.files[0]); };
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]); };

redraw();
if (DATA.missing.length) byId("left-out").textContent = `Left out: ${DATA.missing.join(", ")}.`;
Promise.all(DATA.networks.map(async (network) => { network.layers = await unpack(network); }))
  .then(() => { ready = true; read(); return listSamples(); })
  .catch(() => { byId("status").textContent = "This browser is too old for this page: it lacks DecompressionStream."; });

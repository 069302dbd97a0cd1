"use strict";
// What utils/handwriting.py does to a picture, with the same names and numbers. An image is
// {width, height, data: Float32Array of gray values in [0, 1], row after row}.

const WORKING_SIZE = 512, NARROW = 128, CONTRAST = 0.04, NOISE = 6, LARGEST = 0.7, SPECK = 0.05, GAP = 0.25;
const OVERLAP = 0.1, LEAST = 0.3, WIDEST = 2.1, NARROWEST = 1.05, NECK = 0.7, HIGH = 0.92, STROKE = 2.2, FINE = 10;

const makeImage = (width, height, data = new Float32Array(width * height)) => ({ width, height, data });
const mapped = (image, change) => makeImage(image.width, image.height, image.data.map(change));
const greatest = (values) => { let most = -Infinity; for (const value of values) if (value > most) most = value; return most; };
const clip = (value, low, high) => Math.min(Math.max(value, low), high);

function median(values) {
  const sorted = Float64Array.from(values).sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Round as Python does: halves to even numbers. */
function round(value) {
  const below = Math.floor(value), rest = value - below;
  return rest === 0.5 ? below + (below & 1) : Math.round(value);
}

function crop(image, { top, bottom, left, right }) {
  const part = makeImage(right - left, bottom - top);
  for (let y = top; y < bottom; y++) {
    part.data.set(image.data.subarray(y * image.width + left, y * image.width + right), (y - top) * part.width);
  }
  return part;
}

/** Return the image with rows and columns exchanged. */
function transposed({ width, height, data }) {
  const turned = makeImage(height, width);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) turned.data[x * height + y] = data[y * width + x];
  return turned;
}

/** Apply a function of (row, result row) to all rows, and then to all columns. */
function separable(image, width, height, rowwise) {
  const once = (source, length) => {
    const result = makeImage(length, source.height);
    for (let y = 0; y < source.height; y++) {
      rowwise(
        source.data.subarray(y * source.width, (y + 1) * source.width),
        result.data.subarray(y * length, (y + 1) * length),
      );
    }
    return transposed(result);
  };
  return once(once(image, width), height);
}

/** Resize as Pillow does: "box" or "bilinear", averaged over all source pixels of a pixel. */
function resample(image, width, height, filter) {
  return separable(image, width, height, (row, result) => {
    const scale = row.length / result.length, stretch = Math.max(scale, 1);
    const support = (filter === "box" ? 0.5 : 1) * stretch;
    for (let k = 0; k < result.length; k++) {
      const center = (k + 0.5) * scale;
      const first = Math.max(0, Math.trunc(center - support + 0.5));
      const last = Math.min(row.length, Math.trunc(center + support + 0.5));
      let sum = 0, weights = 0;
      for (let j = first; j < last; j++) {
        const distance = (j - center + 0.5) / stretch;
        const inside = distance > -0.5 && distance <= 0.5 ? 1 : 0;
        const weight = filter === "box" ? inside : Math.max(0, 1 - Math.abs(distance));
        sum += weight * row[j];
        weights += weight;
      }
      result[k] = sum / weights;
    }
  });
}

/** Reduce an image to WORKING_SIZE, unless its shorter side would be below NARROW. */
function thumbnail(image) {
  const { width, height } = image, aspect = width / height, longer = Math.max(width, height);
  const most = Math.max(WORKING_SIZE, Math.min(longer, Math.floor((NARROW * longer) / Math.min(width, height))));
  if (longer <= most) return image;
  const nearest = (value, difference) =>
    Math.max(1, [Math.floor(value), Math.ceil(value)].reduce((a, b) => (difference(b) < difference(a) ? b : a)));
  const size =
    aspect >= 1
      ? [most, nearest(most / aspect, (n) => Math.abs(aspect - most / n))]
      : [nearest(most * aspect, (n) => Math.abs(aspect - n / most)), most];
  return resample(image, ...size, "box");
}

function gaussian(image, sigma) {
  const radius = Math.trunc(4 * sigma + 0.5);
  const kernel = Float64Array.from({ length: 2 * radius + 1 }, (_, k) => Math.exp(-0.5 * ((k - radius) / sigma) ** 2));
  const total = kernel.reduce((a, b) => a + b);
  return separable(image, image.width, image.height, (row, result) => {
    const period = 2 * row.length; // the row and its mirror image, again and again
    for (let x = 0; x < row.length; x++) {
      let sum = 0;
      for (let k = -radius; k <= radius; k++) {
        const place = (((x + k) % period) + period) % period;
        sum += kernel[k + radius] * row[place < row.length ? place : period - 1 - place];
      }
      result[x] = sum / total;
    }
  });
}

/** Return the maximum of each window of 2 * radius + 1 pixels, or for sign -1 the minimum. */
function extreme(image, radius, sign) {
  const size = 2 * radius + 1;
  return separable(image, image.width, image.height, (row, result) => {
    const best = new Float32Array(row.length + size - 1).fill(row[0], 0, radius);
    best.set(row, radius);
    best.fill(row[row.length - 1], radius + row.length);
    let covered = 1; // pixels that best[k] has seen, from k on
    while (covered < size) {
      const more = Math.min(covered, size - covered);
      for (let k = 0; k + more < best.length; k++) best[k] = best[k + more] * sign > best[k] * sign ? best[k + more] : best[k];
      covered += more;
    }
    result.set(best.subarray(0, row.length));
  });
}

/** Fit a quadratic surface to the picture without its outliers. */
function paper({ width, height, data }) {
  const terms = (x, y) => {
    const u = width > 1 ? (2 * x) / (width - 1) - 1 : -1, v = height > 1 ? (2 * y) / (height - 1) - 1 : -1;
    return [1, u, v, u * v, u * u, v * v];
  };
  const step = Math.max(1, Math.floor(Math.max(width, height) / 32)), samples = [];
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) samples.push([terms(x, y), data[y * width + x]]);
  }
  const middle = median(samples.map(([, value]) => value));
  let inliers = samples.filter(([, value]) => Math.abs(value - middle) < 0.25), surface = [middle, 0, 0, 0, 0, 0];
  const at = (each) => each.reduce((sum, term, k) => sum + term * surface[k], 0);
  for (let round = 0; round < 3; round++) {
    surface = leastSquares(inliers);
    const residuals = samples.map(([each, value]) => Math.abs(value - at(each)));
    const limit = Math.max(3 * median(residuals), 0.02);
    inliers = samples.filter((_, k) => residuals[k] <= limit);
  }
  const result = makeImage(width, height), [a, b, c, d, e, f] = surface;
  for (let y = 0, k = 0; y < height; y++) {
    const v = terms(0, y)[2];
    for (let x = 0; x < width; x++, k++) {
      const u = width > 1 ? (2 * x) / (width - 1) - 1 : -1;
      result.data[k] = a + b * u + c * v + d * u * v + e * u * u + f * v * v;
    }
  }
  return result;
}

/** Solve the normal equations by Gauss and Jordan; a direction without data gets a 0. */
function leastSquares(samples) {
  const size = 6, rows = Array.from({ length: size }, () => new Float64Array(size + 1));
  for (const [terms, value] of samples) {
    terms.forEach((a, i) => { terms.forEach((b, j) => (rows[i][j] += a * b)); rows[i][size] += a * value; });
  }
  const solution = new Float64Array(size), done = [];
  for (let column = 0; column < size; column++) {
    const free = rows.filter((row) => !done.includes(row));
    const pivot = free.reduce((a, b) => (Math.abs(b[column]) > Math.abs(a[column]) ? b : a));
    if (Math.abs(pivot[column]) < 1e-7 * samples.length) { done.push(null); continue; }
    done.push(pivot);
    for (const row of rows) {
      if (row === pivot) continue;
      const factor = row[column] / pivot[column];
      for (let k = 0; k <= size; k++) row[k] -= factor * pivot[k];
    }
  }
  done.forEach((row, column) => { if (row) solution[column] = row[size] / row[column]; });
  return solution;
}

/** Return how much darker than the paper each pixel is, as a share of the paper. */
function darker(gray) {
  const { width, height, data } = gray, step = clip(Math.floor(Math.min(width, height) / 16), 1, 4);
  const few = separable(gray, Math.ceil(width / step), Math.ceil(height / step), (row, result) => {
    for (let k = 0; k < result.length; k++) {
      let least = row[k * step];
      for (let j = Math.max(0, (k - 1) * step + 1); j < Math.min(row.length, (k + 1) * step); j++) least = Math.min(least, row[j]);
      result[k] = least;
    }
  });
  const half = round((LARGEST * Math.max(few.width, few.height)) / 2);
  const padded = makeImage(few.width + 2 * half, few.height + 2 * half);
  padded.data.forEach((_, k) => {
    const x = clip((k % padded.width) - half, 0, few.width - 1), y = clip(Math.floor(k / padded.width) - half, 0, few.height - 1);
    padded.data[k] = few.data[y * few.width + x];
  });
  const closed = extreme(extreme(padded, half, 1), half, -1), surface = paper(gray);
  const share = makeImage(width, height), sample = [];
  let most = 0;
  for (let y = 0, k = 0; y < height; y++) {
    const row = (Math.floor(y / step) + half) * padded.width + half;
    for (let x = 0; x < width; x++, k++) {
      const light = closed.data[row + Math.floor(x / step)], difference = light - data[k];
      if (x % step === 0 && y % step === 0) sample.push(difference);
      if (difference > most) most = difference;
      share.data[k] = Math.max(0, Math.min(surface.data[k] - data[k], difference / Math.max(light, 0.2)));
    }
  }
  const middle = median(sample), noise = 1.4826 * median(sample.map((value) => Math.abs(value - middle)));
  if (most < NOISE * noise) share.data.fill(0);
  return share;
}

/** Return the share of ink in [0, 1] of each pixel. */
function findInk(picture) {
  const small = thumbnail(picture);
  const gray = gaussian(small, Math.min(1, Math.max(small.width, small.height) / WORKING_SIZE));
  const energy = ({ data }) => { let sum = 0; for (let k = 0; k < data.length; k++) sum += data[k] * data[k]; return sum; };
  const [dark, bright] = [darker(gray), darker(mapped(gray, (value) => 1 - value))];
  const ink = energy(bright) > energy(dark) ? bright : dark, most = greatest(ink.data);
  if (most < CONTRAST) throw new Error("nothing stands out from the background");
  let threshold = most / 2;
  for (let k = 0; k < 10; k++) {
    let above = 0, count = 0, below = 0;
    for (let j = 0; j < ink.data.length; j++) {
      if (ink.data[j] > threshold) { above += ink.data[j]; count++; } else below += ink.data[j];
    }
    threshold = (above / count + below / (ink.data.length - count)) / 2;
  }
  const limit = Math.max(threshold, CONTRAST / 2), kept = pieces(mapped(ink, (value) => (value > limit ? 1 : 0)));
  const full = median(ink.data.filter((_, k) => kept.data[k]));
  const near = dilated(dilated(kept));
  return makeImage(ink.width, ink.height, ink.data.map((value, k) => near.data[k] * clip((2 * value) / full - 0.5, 0, 1)));
}

/** Add the pixels above, below, left and right. */
function dilated({ width, height, data }) {
  return makeImage(width, height, data.map((value, k) => {
    const x = k % width;
    return value || (x && data[k - 1]) || (x + 1 < width && data[k + 1]) || data[k - width] || data[k + width] ? 1 : 0;
  }));
}

/** Number the connected pieces, diagonals included; return numbers from 1 and a box for each. */
function label({ width, height, data }) {
  const labels = new Int32Array(data.length), boxes = [];
  for (let start = 0; start < data.length; start++) {
    if (!data[start] || labels[start]) continue;
    const box = { top: height, bottom: 0, left: width, right: 0, size: 0 }, stack = [start];
    labels[start] = boxes.push(box);
    while (stack.length) {
      const place = stack.pop(), x = place % width, y = (place - x) / width;
      Object.assign(box, {
        top: Math.min(box.top, y), bottom: Math.max(box.bottom, y + 1),
        left: Math.min(box.left, x), right: Math.max(box.right, x + 1), size: box.size + 1,
      });
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const other = v * width + u;
          if (data[other] && !labels[other]) { labels[other] = boxes.length; stack.push(other); }
        }
      }
    }
  }
  return { labels, boxes };
}

/** Select the connected pieces that may belong to a digit: no specks, no edge of a table. */
function pieces(strong) {
  const { width, height } = strong, { labels, boxes } = label(strong);
  const inner = boxes.map((box) => box.size);
  const row = (y) => labels.subarray(y * width, (y + 1) * width);
  const column = (x) => Int32Array.from({ length: height }, (_, y) => labels[y * width + x]);
  for (const side of [row(0), row(height - 1), column(0), column(width - 1)]) {
    const counts = new Map();
    for (const number of side) counts.set(number, (counts.get(number) ?? 0) + 1);
    for (const [number, count] of counts) if (number && count > 0.8 * side.length) inner[number - 1] = 0;
  }
  const dust = (0.02 * Math.max(width, height)) ** 2;
  const sizes = greatest(inner) > dust ? inner : boxes.map((box) => box.size), least = SPECK * greatest(sizes);
  return makeImage(width, height, strong.data.map((value, k) => (value && sizes[labels[k] - 1] >= least ? 1 : 0)));
}

/** Group the pieces of ink into digits from left to right; return [box, numbers of its pieces]. */
function findDigits(boxes) {
  const height = (box) => box.bottom - box.top, length = (box) => Math.max(height(box), box.right - box.left);
  const gapX = (a, b) => Math.max(a.left, b.left) - Math.min(a.right, b.right);
  const gapY = (a, b) => Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  const gap = (a, b) => Math.max(gapX(a, b), gapY(a, b));
  const longer = (a, b) => Math.max(length(a), length(b)), shorter = (a, b) => Math.min(height(a), height(b));
  const level = (a, b) => -gapY(a, b) >= shorter(a, b) / 2;
  const beside = (a, b) => level(a, b) && gapX(a, b) > -OVERLAP * longer(a, b);
  const below = (a, b) => gapY(a, b) >= 0 && shorter(a, b) >= Math.max(height(a), height(b)) / 2;
  const near = (a, b) => gap(a, b) <= GAP * longer(a, b);
  const most = greatest(boxes.map(length)), large = boxes.filter((box) => length(box) >= most / 2);
  let groups = [];
  for (const box of large) {
    const own = groups.filter((group) => group.some((other) => near(box, other) && !beside(box, other) && !below(box, other)));
    groups = [...groups.filter((group) => !own.includes(group)), [box, ...own.flat()]];
  }
  let row = groups.every((a) => groups.every((b) => a === b || a.every((p) => b.every((q) => level(p, q)))));
  for (const box of boxes.filter((each) => !large.includes(each))) {
    const nearest = large.reduce((a, b) => (gap(box, b) < gap(box, a) ? b : a));
    row &&= near(box, nearest) && !(beside(box, nearest) && length(box) >= LEAST * most);
    groups.find((group) => group.includes(nearest)).push(box);
  }
  if (!row) throw new Error("several objects that are no row of digits (crop lines, dots and others away)");
  const found = groups.map((group) => [bounds(group), group.map((box) => boxes.indexOf(box) + 1)]);
  return found.sort(([a], [b]) => a.left - b.left);
}

/** Whether two digits seem to touch: two high parts that a single stroke connects. */
function touch({ width, height, data }) {
  if (width < NARROWEST * height) return false;
  const strong = (x, y) => y >= 0 && data[y * width + x] > 0.5;
  const spans = Array.from({ length: width }, (_, x) => {
    const rows = Array.from({ length: height }, (_, y) => y).filter((y) => strong(x, y));
    return { top: rows[0] ?? height, bottom: rows.at(-1) ?? -1, size: rows.length, strokes: rows.filter((y) => !strong(x, y - 1)).length };
  });
  const high = (part) => Math.max(...part.map((each) => each.bottom)) - Math.min(...part.map((each) => each.top)) + 1 >= HIGH * height;
  const quarter = Math.floor(width / 4);
  return spans.some(({ size, strokes }, x) => x >= quarter && x < width - quarter && strokes === 1 && size <= NECK * height
    && high(spans.slice(0, x)) && high(spans.slice(x)));
}

const bounds = (boxes) => ({
  top: Math.min(...boxes.map((box) => box.top)), bottom: Math.max(...boxes.map((box) => box.bottom)),
  left: Math.min(...boxes.map((box) => box.left)), right: Math.max(...boxes.map((box) => box.right)),
});

/** Return the squared distance of each pixel to the nearest with a 0 (Felzenszwalb, 2012). */
function squaredDistances(image) {
  const far = 1e10;
  return separable(mapped(image, (value) => (value ? far : 0)), image.width, image.height, (row, result) => {
    const places = [0], starts = [-Infinity];
    for (let q = 1; q < row.length; q++) {
      let start;
      do {
        const p = places.at(-1);
        start = (row[q] + q * q - row[p] - p * p) / (2 * (q - p));
      } while (start <= starts.at(-1) && (places.pop(), starts.pop(), true));
      places.push(q);
      starts.push(start);
    }
    for (let x = 0, k = 0; x < row.length; x++) {
      while (k + 1 < places.length && starts[k + 1] < x) k++;
      result[x] = (x - places[k]) ** 2 + row[places[k]];
    }
  });
}

function padded(image, margin, outside) {
  const result = makeImage(image.width + 2 * margin, image.height + 2 * margin);
  result.data.fill(outside);
  for (let y = 0; y < image.height; y++) {
    result.data.set(image.data.subarray(y * image.width, (y + 1) * image.width), (y + margin) * result.width + margin);
  }
  return result;
}

/** Thicken strokes to STROKE, at FINE pixels per output pixel. */
function thicken(ink) {
  const depth = squaredDistances(padded(mapped(ink, (value) => (value > 0.5 ? 1 : 0)), 1, 0)).data.filter((value) => value > 0);
  const mean = depth.reduce((sum, value) => sum + Math.sqrt(value), 0) / depth.length;
  const radius = (STROKE * FINE - 4 * mean) / 2;
  if (!(radius >= 1)) return ink;
  const outside = squaredDistances(padded(mapped(ink, (value) => (value > 0.5 ? 0 : 1)), Math.trunc(radius), 1));
  return mapped(outside, (value) => clip(1 + radius - Math.sqrt(value), 0, 1));
}

/** Resize an image so that its longer side has the given length. */
function resize(image, longer) {
  const [width, height] = [image.width, image.height].map((side) =>
    Math.max(1, round((side * longer) / Math.max(image.width, image.height))));
  return mapped(resample(image, width, height, "bilinear"), (value) => clip(value, 0, 1));
}

/** Return the digit in the middle of an image of the form {height, width, digit_size, centered}. */
function place(digit, form) {
  const frame = makeImage(form.width, form.height);
  let [sum, x, y] = [0, 0, 0];
  digit.data.forEach((value, k) => { sum += value; x += value * (k % digit.width); y += value * Math.floor(k / digit.width); });
  const center = form.centered === "mass" ? [x / sum, y / sum] : [digit.width / 2, digit.height / 2];
  const left = clip(round(frame.width / 2 - center[0]), 0, frame.width - digit.width);
  const top = clip(round(frame.height / 2 - center[1]), 0, frame.height - digit.height);
  for (let row = 0; row < digit.height; row++) {
    frame.data.set(digit.data.subarray(row * digit.width, (row + 1) * digit.width), (top + row) * frame.width + left);
  }
  return frame;
}

/** Return the digits of a picture as [{box, ink}], from left to right; an Error says what is wrong. */
function readDigits(picture) {
  const first = findInk(picture), page = Math.max(picture.width, picture.height);
  const box = bounds(label(mapped(first, (value) => (value > 0.5 ? 1 : 0))).boxes);
  const scale = page / Math.max(first.width, first.height);
  const extra = 0.3 * Math.max(box.bottom - box.top, box.right - box.left);
  const near = {
    top: Math.max(0, round((box.top - extra) * scale)), bottom: Math.min(picture.height, round((box.bottom + extra) * scale)),
    left: Math.max(0, round((box.left - extra) * scale)), right: Math.min(picture.width, round((box.right + extra) * scale)),
  };
  const closer = crop(picture, near), ink = findInk(closer);
  const zoom = Math.max(closer.width, closer.height) / Math.max(ink.width, ink.height);
  const { labels, boxes } = label(mapped(ink, (value) => (value > 0.5 ? 1 : 0)));
  return findDigits(boxes).map(([own, numbers]) => {
    const whole = makeImage(ink.width, ink.height, ink.data.map((value, k) => (!labels[k] || numbers.includes(labels[k]) ? value : 0)));
    const alone = crop(whole, own), ratio = alone.width / alone.height;
    if (ratio > WIDEST || touch(alone)) {
      throw new Error(`${ratio.toFixed(1)} times as wide as high: digits that touch, or none (leave space between them)`);
    }
    return {
      ink: alone,
      box: {
        left: (near.left + zoom * own.left) / picture.width, right: (near.left + zoom * own.right) / picture.width,
        top: (near.top + zoom * own.top) / picture.height, bottom: (near.top + zoom * own.bottom) / picture.height,
      },
    };
  });
}

/** Return the ink of a digit in a dataset's form. */
function prepare(ink, form) {
  const digit = resize(thicken(resize(ink, FINE * form.digit_size)), form.digit_size), most = greatest(digit.data);
  return place(mapped(digit, (value) => value / most), form);
}

/** Return a digit of one dataset, white on black, in the form of another. */
function refit(image, form) {
  const most = greatest(image.data);
  const box = bounds(label(mapped(image, (value) => (value / most > 0.1 ? 1 : 0))).boxes);
  return place(resize(crop(image, box), form.digit_size), form);
}

/** Return gray values of RGBA pixels: their first principal component, from 0 to 1. */
function toGray({ width, height, data }) {
  const step = Math.max(1, Math.floor(Math.max(width, height) / 200)), mean = [0, 0, 0], spread = new Float64Array(9);
  const sample = [];
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) {
      const k = 4 * (y * width + x);
      sample.push([data[k] / 255, data[k + 1] / 255, data[k + 2] / 255]);
    }
  }
  for (const color of sample) color.forEach((value, k) => (mean[k] += value / sample.length));
  for (const color of sample) {
    for (let k = 0; k < 9; k++) spread[k] += (color[k % 3] - mean[k % 3]) * (color[Math.floor(k / 3)] - mean[Math.floor(k / 3)]);
  }
  let axis = [1, 0.9, 1.1]; // no eigenvector of usual pictures, from which the power method starts
  for (let round = 0; round < 200; round++) {
    const next = [0, 1, 2].map((i) => axis.reduce((sum, value, j) => sum + spread[3 * i + j] * value, 0));
    const length = Math.hypot(...next);
    if (!length) break;
    axis = next.map((value) => value / length);
  }
  const sign = Math.sign(axis[0] + axis[1] + axis[2]) || 1, total = axis.reduce((sum, value) => sum + Math.abs(value), 0);
  axis = axis.map((value) => (sign * value) / total);
  const lowest = axis.reduce((sum, value) => sum + Math.min(value, 0), 0), gray = makeImage(width, height);
  for (let k = 0; k < gray.data.length; k++) {
    gray.data[k] = (axis[0] * data[4 * k] + axis[1] * data[4 * k + 1] + axis[2] * data[4 * k + 2]) / 255 - lowest;
  }
  return gray;
}

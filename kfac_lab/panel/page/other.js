// Bars, matrices and sheets of images on a canvas: how they are drawn, and what stands where.

const DIVERGING = [[0, 80, 125], [79, 159, 204], [255, 255, 255], [238, 141, 87], [176, 76, 0]];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const GREYS = [[0, 0, 0], [255, 255, 255]];

// The colour of a number; none where it is none, or has no logarithm.
const shade = (part, v) => {
  if (v !== v || (part.log && v <= 0)) return null;
  const [a, b, u] = part.log ? [part.low, part.high, v].map(Math.log) : [part.low, part.high, v];
  const stops = part.signed ? DIVERGING : part.kind === 'matrix' ? VIRIDIS : GREYS;
  const t = Math.max(0, Math.min(1, (u - a) / (b - a || 1))) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (t - i)));
};

const pixels = (part, { at, rows, columns }) => {
  const made = document.createElement('canvas'); made.width = columns; made.height = rows;
  const c = made.getContext('2d'), image = c.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const rgb = shade(part, part.values.at(at + i));
    if (rgb) image.data.set([...rgb, 255], 4 * i);
  }
  c.putImageData(image, 0, 0);
  return made;
};

const wide = texts => 6.2 * Math.max(0, ...texts.map(t => t.length));
const few = v => short(+v.toPrecision(2));

// Rectangles of rows × columns of numbers, numbered as the numbers are: from there a place is found, and named.
const tiled = (part, axes, width, height) => {
  const top = axes.title || part.kind === 'bars' ? 24 : 8, foot = axes.x[0].label && part.kind !== 'images' ? 18 : 4, tiles = [];
  const scale = part.kind === 'bars' ? 84 : 66;  // what is needed on the right
  if (part.kind === 'bars') {
    const left = 12 + wide(part.names), tall = Math.min(26, (height - top - foot) / part.names.length), most = Math.max(...part.names.map((_, i) => part.values.at(i))) || 1;
    part.names.forEach((name, i) => tiles.push({ x: left, y: top + i * tall, w: width - left - scale, h: tall, share: part.values.at(i) / most, at: i, rows: 1, columns: 1, name: () => name }));
  } else if (part.kind === 'matrix') {
    const [rows, columns] = part.sizes[0], left = 24 + wide(part.rows), under = foot + (part.columns.length ? 16 : 0), names = (n, i) => n[i] ?? String(i + 1);
    const side = Math.min((width - left - scale) / columns, (height - top - under) / rows);
    tiles.push({ x: left, y: top, w: side * columns, h: side * rows, at: 0, rows, columns, name: (i, j) => `${names(part.rows, i)}, ${names(part.columns, j)}` });
  } else {
    const n = part.sizes.length, left = 6 + wide(part.rows) + (part.rows.length ? 6 : 0), caption = part.captions.some(t => t) ? 15 : 0, gap = 4;
    const tall = Math.max(...part.sizes.map(([h, w]) => h / w)), room = height - top - foot;
    const size = k => Math.min((width - left - scale) / k - gap, (room / Math.ceil(n / k) - caption - gap) / tall);
    const columns = part.columns || [...Array(n).keys()].map(k => k + 1).reduce((a, b) => size(b) > size(a) ? b : a), s = size(columns);
    let at = 0;
    part.sizes.forEach(([h, w], k) => {
      const row = Math.floor(k / columns), names = [part.rows[row], part.captions[k]].filter(t => t);
      const name = (i, j) => [names.join(', ') || `image ${k + 1}`, h * w > 1 ? `row ${i + 1}, column ${j + 1}` : ''].filter(t => t).join(': ');
      tiles.push({ x: left + k % columns * (s + gap), y: top + row * (s * tall + caption + gap), w: s, h: s * tall, at, rows: h, columns: w, caption: part.captions[k], row: k % columns ? '' : part.rows[row], name });
      at += h * w;
    });
  }
  return { tiles, left: tiles[0]?.x ?? 0, top, bottom: Math.max(top, ...tiles.map(t => t.y + t.h)), right: Math.max(0, ...tiles.map(t => t.x + t.w)) };
};

export const drawOther = (c, axes, width, height, theme) => {
  const part = axes.parts[0], { tiles, left, top, bottom, right } = tiled(part, axes, width, height), count = part.values.length;
  c.font = `11px ${theme.font}`; c.textBaseline = 'middle';
  const text = (t, x, y, align = 'center', colour = theme.faint) => { c.textAlign = align; c.fillStyle = colour; c.fillText(t, x, y); };
  text(axes.title, left, 10, 'left', theme.ink);
  if (part.kind === 'bars') {
    let total = 0; for (let i = 0; i < count; i++) total += part.values.at(i);
    tiles.forEach((t, i) => {
      text(part.names[i], t.x - 6, t.y + t.h / 2, 'right', theme.ink);
      c.fillStyle = part.colours[i] || '#0072B2'; c.fillRect(t.x, t.y + 2, Math.max(0, t.w * t.share), t.h - 4);
      text(`${few(part.values.at(i))}  ${Math.round(100 * part.values.at(i) / (total || 1))} %`, t.x + t.w * t.share + 5, t.y + t.h / 2, 'left');
    });
  } else {
    for (const t of tiles) {
      c.imageSmoothingEnabled = t.columns > t.w * (window.devicePixelRatio || 1);
      c.drawImage(pixels(part, t), t.x, t.y, t.w, t.h);
      c.strokeStyle = theme.grid; c.lineWidth = 1; c.beginPath(); c.rect(t.x, t.y, t.w, t.h); c.stroke();
      if (t.caption) text(t.caption.slice(0, Math.max(4, t.w / 5.6)), t.x + t.w / 2, t.y + t.h + 8);
      if (t.row) text(t.row, t.x - 6, t.y + t.h / 2, 'right', theme.ink);
    }
    const [t] = tiles, own = part.kind === 'matrix';
    if (own) {
      part.rows.forEach((name, i) => text(name, left - 5, top + (i + 0.5) * t.h / t.rows, 'right'));
      part.columns.forEach((name, i) => text(name, left + (i + 0.5) * t.w / t.columns, bottom + 9));
      c.save(); c.translate(9, (top + bottom) / 2); c.rotate(-Math.PI / 2); text(axes.y.label, 0, 0, 'center', theme.ink); c.restore();
    }
    if (own && part.written) for (let k = 0; k < count; k++) {
      const v = part.values.at(k), rgb = shade(part, v);
      if (rgb) text(few(v), left + (k % t.columns + 0.5) * t.w / t.columns, top + (Math.floor(k / t.columns) + 0.5) * t.h / t.rows, 'center', rgb[0] + rgb[1] + rgb[2] > 380 ? '#000' : '#fff');
    }
    const x = right + 12, at = u => part.log ? part.low * (part.high / part.low) ** u : part.low + u * (part.high - part.low), steps = 40;
    for (let i = 0; i < steps; i++) { c.fillStyle = `rgb(${shade(part, at((i + 0.5) / steps))})`; c.fillRect(x, bottom - (i + 1) * (bottom - top) / steps, 9, (bottom - top) / steps + 0.5); }
    for (const u of [0, 0.5, 1]) text(short(+at(u).toPrecision(3)), x + 13, bottom - u * (bottom - top - 8) - 4, 'left');
  }
  if (part.kind !== 'images') text(axes.x[0].label, (left + right) / 2, Math.min(height - 7, bottom + (part.columns?.length ? 24 : 12)), 'center', theme.ink);
  return {
    other: true, count,
    find: (px, py) => {
      const t = tiles.find(t => px >= t.x && px < t.x + t.w && py >= t.y && py < t.y + t.h);
      return t ? t.at + Math.floor((py - t.y) / t.h * t.rows) * t.columns + Math.floor((px - t.x) / t.w * t.columns) : -1;
    },
    spot: k => {
      const t = tiles.findLast(t => t.at <= k), i = Math.floor((k - t.at) / t.columns), j = (k - t.at) % t.columns, w = t.w / t.columns, h = t.h / t.rows;
      return { name: t.name(i, j), value: part.values.at(k), x: t.x + j * w, y: t.y + i * h, w, h };
    },
  };
};

// Bars, matrices and sheets of images on a canvas.

const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
const stops = (colours, t) => { const u = Math.max(0, Math.min(1, t)) * (colours.length - 1), i = Math.min(Math.floor(u), colours.length - 2); return mix(colours[i], colours[i + 1], u - i); };
const DIVERGING = [[0, 80, 125], [79, 159, 204], [255, 255, 255], [238, 141, 87], [176, 76, 0]];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const GREYS = [[0, 0, 0], [255, 255, 255]];

// Rows × columns of numbers as pixels; those that are none are left clear.
const pixels = (values, rows, columns, low, high, colours) => {
  const made = document.createElement('canvas'); made.width = columns; made.height = rows;
  const c = made.getContext('2d'), image = c.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const v = values.at(i);
    if (v !== v) continue;
    image.data.set([...stops(colours, (v - low) / (high - low || 1)), 255], 4 * i);
  }
  c.putImageData(image, 0, 0);
  return made;
};

export const drawOther = (c, axes, width, height, theme) => {
  c.font = `11px ${theme.font}`; c.textBaseline = 'middle';
  const text = (t, x, y, align, colour = theme.ink) => { c.textAlign = align; c.fillStyle = colour; c.fillText(t, x, y); };
  text(axes.title || axes.y.label, 6, 10, 'left');
  const part = axes.parts.find(p => p.kind !== 'series');
  if (part.kind === 'bars') {
    const n = part.names.length, total = part.names.reduce((s, _, i) => s + part.values.at(i), 0) || 1;
    let most = 0; for (let i = 0; i < n; i++) most = Math.max(most, part.values.at(i));
    const tall = Math.min(26, (height - 50) / n), left = 90, room = width - left - 90;
    for (let i = 0; i < n; i++) {
      const y = 24 + i * tall, v = part.values.at(i);
      text(part.names[i], left - 6, y + tall / 2, 'right');
      c.fillStyle = part.colours[i] || '#0072B2'; c.fillRect(left, y + 2, Math.max(0, room * v / (most || 1)), tall - 4);
      text(`${short(+v.toPrecision(2))}  ${Math.round(100 * v / total)} %`, left + room * v / (most || 1) + 5, y + tall / 2, 'left', theme.faint);
    }
    text(axes.x[0].label, left + room / 2, height - 12, 'center');
  } else if (part.kind === 'matrix') {
    const [rows, columns] = part.valuesShape, side = Math.min((width - 90) / columns, (height - 60) / rows), left = 50, top = 24;
    c.imageSmoothingEnabled = rows > side * rows;
    c.drawImage(pixels(part.values, rows, columns, part.low, part.high, part.signed ? DIVERGING : VIRIDIS), left, top, columns * side, rows * side);
    part.rows.forEach((t, i) => text(t, left - 4, top + (i + 0.5) * side, 'right', theme.faint));
    part.columns.forEach((t, i) => text(t, left + (i + 0.5) * side, top + rows * side + 10, 'center', theme.faint));
    if (part.written) for (let i = 0; i < rows * columns; i++) { const v = part.values.at(i), [r, g, b] = stops(part.signed ? DIVERGING : VIRIDIS, (v - part.low) / (part.high - part.low || 1)); text(v === v ? String(+v.toPrecision(2)) : '', left + (i % columns + 0.5) * side, top + (Math.floor(i / columns) + 0.5) * side, 'center', r + g + b > 380 ? '#000' : '#fff'); }
    text(`${short(part.low)} … ${short(part.high)}`, left, Math.min(height - 8, top + rows * side + 26), 'left', theme.faint);
  } else {
    const [n, h, w] = part.stackShape, across = part.columns, rows = Math.ceil(n / across), caption = part.captions.length ? 14 : 0;
    const size = Math.min((width - 12) / (across * (w + 1)), (height - 30 - rows * caption) / (rows * (h + 1)));
    c.imageSmoothingEnabled = false;
    for (let k = 0; k < n; k++) {
      const x = 6 + (k % across) * (w + 1) * size, y = 22 + Math.floor(k / across) * ((h + 1) * size + caption);
      const one = { at: i => part.stack.at(k * h * w + i) };
      c.drawImage(pixels(one, h, w, part.low, part.high, part.signed ? DIVERGING : GREYS), x, y, w * size, h * size);
      if (caption && part.captions[k]) text(part.captions[k], x + w * size / 2, y + h * size + 7, 'center', theme.faint);
    }
  }
};

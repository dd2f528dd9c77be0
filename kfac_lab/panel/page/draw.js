// Axes drawn on a canvas, or as SVG: scales, ticks, lines. Knows no page and no kernel.

const GREY = '#7a7a7a';
const DASHES = { '-': [], '--': [7, 3], ':': [2, 2.5], '-.': [7, 3, 2, 3], '- -': [11, 4], '..': [4, 2], '-..': [5, 2, 1.5, 2, 1.5, 2] };
const MARGIN = { left: 62, right: 14, top: 24, bottom: 38 };

export const short = v => {
  if (v === undefined || v === null || v !== v) return '–';
  if (v === 0) return '0';
  const a = Math.abs(v);
  return a >= 1e5 || a < 1e-3 ? v.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e') : String(+v.toPrecision(4));
};

class Scale {
  constructor(low, high, from, to, log) {
    this.log = log && low > 0;
    Object.assign(this, { low, high, from, to });
    this.a = this.log ? Math.log(low) : low;
    this.b = this.log ? Math.log(high) : high;
  }
  at(v) {  // a value in pixels; what a logarithm cannot show lies at the lower end
    const u = this.log ? (v > 0 ? Math.log(v) : this.a) : v;
    return this.from + (u - this.a) / (this.b - this.a || 1) * (this.to - this.from);
  }
  back(p) {
    const u = this.a + (p - this.from) / (this.to - this.from) * (this.b - this.a);
    return this.log ? Math.exp(u) : u;
  }
  ticks(count, whole) {
    if (this.log) {
      const found = [];
      for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]]) {
        found.length = 0;
        for (let e = Math.floor(Math.log10(this.low)); e <= Math.log10(this.high); e++)
          for (const s of steps) { const v = s * 10 ** e; if (v >= this.low && v <= this.high) found.push(v); }
        if (found.length >= 3) break;
      }
      if (found.length >= 2) return found.filter((_, i) => i % Math.ceil(found.length / (count + 2)) === 0);
    }
    const raw = (this.high - this.low) / count || 1, size = 10 ** Math.floor(Math.log10(raw));
    let step = size * [1, 2, 2.5, 5, 10].find(m => m * size >= raw * 0.999);
    if (whole) step = Math.max(1, Math.ceil(step));
    const found = [];
    for (let v = Math.ceil(this.low / step) * step; v <= this.high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return found;
  }
}

// The x of a series: one array, or several by the name of the axis; epochs follow from the cases.
export const along = (part, choice, size) => {
  if (!part.x.along) return part.x;
  if (choice === 'epochs') {
    const cases = part.x.along.cases;
    return cases && size ? { length: cases.length, at: i => cases.at(i) / size } : null;
  }
  return part.x.along[choice] || null;
};

// The first place in a growing x whose value is not below v.
const place = (x, n, v) => { let a = 0, b = n; while (a < b) { const m = (a + b) >> 1; x.at(m) < v ? a = m + 1 : b = m; } return a; };

// Points of a series as they are drawn: smoothed where asked, and those that are numbers.
export const points = (axes, part, look) => {
  const x = along(part, look.x, look.size?.(part.run)), y = part.y, found = { x: [], y: [], raw: [], i: [] };
  if (!x) return found;
  const n = Math.min(x.length, y.length), from = look.from?.(part.run) || 0, steps = part.x.along?.iteration;
  const s = part.shape === 'line' ? look.smooth || 0 : 0;
  let mean = 0, weight = 0;
  for (let i = 0; i < n; i++) {
    const u = x.at(i), v = y.at(i);
    if (!isFinite(u) || !isFinite(v)) continue;
    mean = s * mean + (1 - s) * v; weight = s * weight + (1 - s);
    if (from && steps && steps.at(i) < from) continue;
    found.x.push(u); found.raw.push(v); found.y.push(s ? mean / weight : v); found.i.push(i);
  }
  return found;
};

export const nearest = (p, v) => {
  const n = p.x.length;
  if (!n) return -1;
  const i = place({ at: k => p.x[k] }, n, v);
  return i === 0 ? 0 : i === n || v - p.x[i - 1] < p.x[i] - v ? i - 1 : i;
};

// Where a line goes on while a step is under way: as far as that has probably come, and its end.
const coming = (part, p, look) => {
  const ahead = look.ahead?.(part.run), n = p.x.length;
  if (!ahead || part.shape !== 'line' || part.low || part.x.along?.iteration?.at(p.i[n - 1]) !== ahead.step) return null;
  const last = p.x[n - 1], wide = n > 1 ? last - p.x[n - 2] : look.x === 'iteration' ? 1 : last;
  return { x: last + ahead.share * wide, end: last + wide };
};

// Axes laid out: every visible series with its points, and the two scales.
export const arranged = (axes, look, width, height) => {
  const found = [];
  for (const part of axes.parts) {
    if (part.kind !== 'series' || look.hidden?.(part.run)) continue;
    const p = points(axes, part, look);
    if (p.x.length) found.push({ part, p, next: coming(part, p, look), ink: part.shape === 'area' ? { colour: part.colour } : look.ink(part.run, part.colour, found.length) });
  }
  const box = { ...MARGIN };
  const key = axes.parts.filter(p => p.kind === 'series' && !p.run && p.name);
  if (axes.bands.length) box.right = 96;
  if (key.length > 1) box.right = 30 + Math.min(0.45 * width, 6 * Math.max(...key.map(p => p.name.length)));
  const range = (low, high) => low === Infinity ? null : [low, high];
  let lx = Infinity, hx = -Infinity, ly = Infinity, hy = -Infinity, positive = Infinity;
  const logY = look.scale === 'log' || (look.scale !== 'linear' && axes.y.log);
  const logX = axes.x.find(a => a.label === look.x)?.log;
  const seen = v => { if (v < ly) ly = v; if (v > hy) hy = v; if (v > 0 && v < positive) positive = v; };
  const clip = axes.clip || [-Infinity, Infinity];
  for (const { part, p, next } of found) {
    if (next && next.end > hx) hx = next.end;
    for (let k = 0; k < p.x.length; k++) {
      const u = p.x[k];
      if (u < lx) lx = u;
      if (u > hx) hx = u;
      if (part.shape === 'crosses' || (look.zoomX && (u < look.zoomX[0] || u > look.zoomX[1]))) continue;
      seen(Math.min(Math.max(look.smooth ? p.y[k] : p.raw[k], clip[0]), clip[1]));
      if (part.low) { seen(part.low.at(p.i[k])); seen(part.high.at(p.i[k])); }
    }
  }
  for (const v of axes.range || []) seen(v);
  if (!found.length) return { found, box: { ...MARGIN }, empty: true };
  let x = look.zoomX || range(lx, hx), y = look.zoomY || (logY && positive < Infinity ? [Math.max(ly, positive), hy] : range(ly, hy) || [0, 1]);
  if (!look.zoomX) { const pad = logX ? 0 : 0.02 * (x[1] - x[0]) || 0.5; x = logX ? [x[0] / 1.1, x[1] * 1.1] : [look.x === 'iteration' ? x[0] - pad : Math.max(0, x[0] - pad), x[1] + pad]; }
  if (!look.zoomY) {
    if (logY && y[0] > 0) { const f = Math.max((y[1] / y[0]) ** 0.06, 1.04); y = [y[0] / f, y[1] * f]; }
    else { const pad = 0.07 * (y[1] - y[0]) || 0.1 * Math.abs(y[1]) || 0.5; y = [y[0] - pad, y[1] + pad]; }
  }
  if (found.some(({ part }) => part.shape === 'area') && ly === 0 && !look.zoomY) y[0] = 0;
  return {
    found, box, clip, logY, keyed: key.length > 1,
    sx: new Scale(x[0], x[1], box.left, width - box.right, logX),
    sy: new Scale(y[0], y[1], height - box.bottom, box.top, logY),
  };
};

const line = (c, xs, ys, sx, sy, room) => {
  c.beginPath();
  const n = xs.length;
  if (n <= 4 * room) {
    for (let i = 0; i < n; i++) i ? c.lineTo(sx.at(xs[i]), sy.at(ys[i])) : c.moveTo(sx.at(xs[i]), sy.at(ys[i]));
  } else {  // first, lowest, highest and last of every pixel
    let i = 0, begun = false;
    while (i < n) {
      const column = Math.floor(sx.at(xs[i]));
      let low = i, high = i, j = i;
      while (j < n && Math.floor(sx.at(xs[j])) === column) { if (ys[j] < ys[low]) low = j; if (ys[j] > ys[high]) high = j; j++; }
      for (const k of [...new Set([i, ...(low < high ? [low, high] : [high, low]), j - 1])]) {
        begun ? c.lineTo(sx.at(xs[k]), sy.at(ys[k])) : c.moveTo(sx.at(xs[k]), sy.at(ys[k])); begun = true;
      }
      i = j;
    }
  }
  c.stroke();
};

const dot = (c, shape, x, y, r) => {
  c.beginPath();
  if (shape === 'diamonds') { c.moveTo(x, y - r - 1); c.lineTo(x + r + 1, y); c.lineTo(x, y + r + 1); c.lineTo(x - r - 1, y); c.closePath(); }
  else if (shape === 'crosses') { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x + r, y - r); c.lineTo(x - r, y + r); }
  else c.arc(x, y, r, 0, 2 * Math.PI);
};

// Draws axes into a context of width × height CSS pixels; returns how they were laid out.
export const drawAxes = (c, axes, look, width, height, theme) => {
  const made = arranged(axes, look, width, height), { box } = made;
  c.font = `11px ${theme.font}`; c.textBaseline = 'middle';
  const text = (t, x, y, align = 'left', colour = theme.faint) => { c.textAlign = align; c.fillStyle = colour; c.fillText(t, x, y); };
  if (axes.title) text(axes.title, box.left, 10, 'left', theme.ink);
  if (made.empty) { text(axes.empty, width / 2, height / 2, 'center'); return made; }
  const { sx, sy, clip } = made, right = width - box.right, bottom = height - box.bottom;
  for (const [from, to, name, colour] of axes.bands) {
    const a = from === null ? bottom : Math.min(Math.max(sy.at(from), box.top), bottom), b = to === null ? box.top : Math.min(Math.max(sy.at(to), box.top), bottom);
    if (colour) { c.globalAlpha = 0.1; c.fillStyle = colour; c.fillRect(box.left, b, right - box.left, a - b); c.globalAlpha = 1; }
    name.split('\n').forEach((t, i, all) => text(t, right + 6, (a + b) / 2 + 14 * (i - (all.length - 1) / 2)));
  }
  c.lineWidth = 1; c.setLineDash([]);
  for (const v of sy.ticks(5)) {
    c.strokeStyle = theme.grid; c.beginPath(); c.moveTo(box.left, Math.round(sy.at(v)) + 0.5); c.lineTo(right, Math.round(sy.at(v)) + 0.5); c.stroke();
    text(short(v), box.left - 7, sy.at(v), 'right');
  }
  for (const v of sx.ticks(Math.max(2, Math.floor((right - box.left) / 80)), look.x === 'iteration')) {
    c.strokeStyle = theme.grid; c.beginPath(); c.moveTo(Math.round(sx.at(v)) + 0.5, box.top); c.lineTo(Math.round(sx.at(v)) + 0.5, bottom); c.stroke();
    text(short(v), sx.at(v), bottom + 12, 'center');
  }
  text(look.x, (box.left + right) / 2, height - 7, 'center', theme.ink);
  c.save(); c.translate(11, (box.top + bottom) / 2); c.rotate(-Math.PI / 2);
  text(axes.y.unit ? `${axes.y.label}, ${axes.y.unit}` : axes.y.label, 0, 0, 'center', theme.ink); c.restore();
  c.save(); c.beginPath(); c.rect(box.left, box.top - 5, right - box.left + 5, bottom - box.top + 10); c.clip();
  for (const [name, height] of Object.entries(axes.levels)) {
    c.strokeStyle = GREY; c.setLineDash([2, 3]); c.beginPath(); c.moveTo(box.left, sy.at(height)); c.lineTo(right, sy.at(height)); c.stroke();
    if (name) text(name, right - 4, sy.at(height) - 8, 'right');
  }
  for (const { part, p, ink, next } of [...made.found].reverse()) {
    const thin = ink.thin && !part.low;
    c.strokeStyle = c.fillStyle = ink.colour;
    if (part.low) {
      c.globalAlpha = part.shape === 'area' ? 1 : 0.2; c.beginPath();
      p.i.forEach((i, k) => c[k ? 'lineTo' : 'moveTo'](sx.at(p.x[k]), sy.at(part.high.at(i))));
      for (let k = p.i.length - 1; k >= 0; k--) c.lineTo(sx.at(p.x[k]), sy.at(part.low.at(p.i[k])));
      c.closePath(); c.fill(); c.globalAlpha = 1;
    }
    const lines = part.shape === 'line' || part.shape === 'dots', room = right - box.left;
    if (lines) {
      c.setLineDash([]); c.lineWidth = 1;
      if (look.smooth && part.shape === 'line') { c.globalAlpha = 0.28; line(c, p.x, p.raw, sx, sy, room); c.globalAlpha = 1; }
      c.setLineDash(DASHES[ink.dash] || []); c.lineWidth = thin ? 0.8 : part.shape === 'dots' ? 1.1 : 1.8;
      c.globalAlpha = thin ? 0.5 : 1;
      line(c, p.x, p.y.map(v => Math.min(Math.max(v, clip[0]), clip[1])), sx, sy, room);
      c.globalAlpha = 1; c.setLineDash([]);
    }
    const n = p.x.length;
    if (next) {  // a point to come: a ring at the end of a thin line, as high as the last one
      const X = sx.at(next.x), Y = sy.at(Math.min(Math.max(p.y[n - 1], clip[0]), clip[1]));
      c.lineWidth = 1; c.setLineDash([2, 3]); c.beginPath(); c.moveTo(sx.at(p.x[n - 1]), Y); c.lineTo(X, Y); c.stroke(); c.setLineDash([]);
      dot(c, '', X, Y, 3); c.lineWidth = 1.3; c.stroke();
    }
    const every = part.shape === 'line' && n > 1 ? (thin ? n : n - 1) : part.shape === 'area' ? n : 0;
    const apart = part.shape === 'diamonds' || part.shape === 'circles' ? 11 : 0;  // pixels, or they would be a bar
    for (let k = every, drawn = -Infinity; k < n; k++) {
      const edge = Math.min(Math.max(p.y[k], clip[0]), clip[1]), X = sx.at(p.x[k]);
      if (X - drawn < apart && k < n - 1) continue;
      drawn = X;
      const Y = part.shape === 'crosses' ? bottom - 6 : sy.at(edge);
      dot(c, part.shape, X, Y, part.shape === 'line' ? 3 : n > 150 && part.shape === 'dots' ? 1.2 : 3);
      if (part.shape === 'crosses') { c.lineWidth = 1.5; c.stroke(); }
      else if (part.shape === 'circles') { c.save(); c.fillStyle = theme.paper; c.fill(); c.restore(); c.lineWidth = 1.3; c.stroke(); }
      else c.fill();
    }
  }
  c.restore();
  if (made.keyed) made.found.filter(({ part }) => !part.run && part.name).forEach(({ part, ink }, i, all) => {
    const y = box.top + 6 + i * Math.min(15, (bottom - box.top) / all.length);
    c.fillStyle = ink.colour; c.fillRect(right + 8, y - 2, 12, 4);
    text(part.name, right + 24, y);
  });
  return made;
};

// As much of a canvas's context as drawAxes uses, written down as SVG.
export class Svg {
  constructor(width, height) { Object.assign(this, { width, height, out: [], d: '', move: '', stack: [], clips: 0, globalAlpha: 1, dash: [], lineWidth: 1, closing: 0 }); }
  esc(t) { return String(t).replace(/[&<>"]/g, m => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[m]); }
  add(tag) { this.out.push(tag); }
  paint(how) { const dash = this.dash.length && how[0] === 's' ? ` stroke-dasharray="${this.dash}"` : ''; this.add(`<path d="${this.d}" ${how} opacity="${this.globalAlpha}"${dash}/>`); }
  beginPath() { this.d = ''; }
  moveTo(x, y) { this.d += `M${x.toFixed(2)} ${y.toFixed(2)}`; }
  lineTo(x, y) { this.d += `L${x.toFixed(2)} ${y.toFixed(2)}`; }
  closePath() { this.d += 'Z'; }
  arc(x, y, r) { this.d += `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`; }
  rect(x, y, w, h) { this.d += `M${x} ${y}h${w}v${h}h${-w}Z`; }
  setLineDash(d) { this.dash = d; }
  stroke() { this.paint(`stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}" fill="none" stroke-linejoin="round"`); }
  fill() { this.paint(`fill="${this.fillStyle}"`); }
  fillRect(x, y, w, h) { this.add(`<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${this.fillStyle}" opacity="${this.globalAlpha}"/>`); }
  drawImage(canvas, x, y, w, h) { this.add(`<image href="${canvas.toDataURL()}" x="${x}" y="${y}" width="${w}" height="${h}" preserveAspectRatio="none" style="image-rendering:${this.imageSmoothingEnabled ? 'auto' : 'pixelated'}"/>`); }
  fillText(t, x, y) { this.add(`<text x="${x}" y="${y}" fill="${this.fillStyle}" style="font:${this.esc(this.font)}" dominant-baseline="central" text-anchor="${{ center: 'middle', right: 'end' }[this.textAlign] || 'start'}">${this.esc(t)}</text>`); }
  save() { this.stack.push([this.closing, this.fillStyle]); this.closing = 0; }
  restore() { for (; this.closing; this.closing--) this.add('</g>'); [this.closing, this.fillStyle] = this.stack.pop(); }
  group(attribute) { this.add(`<g ${attribute}>`); this.closing++; }
  translate(x, y) { this.group(`transform="translate(${x} ${y})"`); }
  rotate(a) { this.group(`transform="rotate(${a * 180 / Math.PI})"`); }
  clip() { const id = `c${Svg.count = (Svg.count || 0) + 1}`; this.add(`<clipPath id="${id}"><path d="${this.d}"/></clipPath>`); this.group(`clip-path="url(#${id})"`); }
  text() { return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}">${this.out.join('')}</svg>`; }
}

// The chart: what has arrived is drawn, and can be hovered, zoomed, smoothed, read as a table, saved.

const el = (tag, options = {}, ...inside) => {
  const made = document.createElement(tag);
  for (const [k, v] of Object.entries(options)) {
    if (k.startsWith('on')) made.addEventListener(k.slice(2), v);
    else if (k in made && k !== 'list') made[k] = v; else if (v !== undefined) made.setAttribute(k, v);
  }
  made.append(...inside.filter(i => i !== undefined && i !== null));
  return made;
};

// A button, and text that is only touched where it is another.
const press = (text, title, act, more) => el('button', { type: 'button', title, onclick: act, ...more }, text);
const put = (e, text) => { if (e.textContent !== text) e.textContent = text; };

// An array that grows: new numbers are added behind those that are there.
class Column {
  constructor() { this.data = new Float64Array(64); this.length = 0; }
  write(start, values) {
    const n = start + values.length;
    if (n > this.data.length) { const more = new Float64Array(2 * n); more.set(this.data.subarray(0, start)); this.data = more; }
    this.data.set(values, start); this.length = n;
  }
  at(i) { return this.data[i]; }
}

export class Chart {
  constructor(root, host) {
    this.host = host;  // looks of runs, and what to do with what is clicked
    this.store = new Map(); this.plots = []; this.cells = []; this.choices = {}; this.zooms = {}; this.view = ''; this.frames = this.draws = 0; this.smooth = 0; this.scale = 'auto';
    this.live = el('div', { className: 'kl-sr', role: 'status', 'aria-live': 'polite' });
    this.bar = el('div', { className: 'kl-tools', role: 'toolbar', 'aria-label': 'chart' });
    this.body = el('div', { className: 'kl-plots' });
    this.tip = el('div', { className: 'kl-tip', hidden: true });
    this.pop = el('div', { className: 'kl-pop', hidden: true, role: 'dialog', 'aria-label': 'swap' });
    this.table = el('details', { className: 'kl-table', ontoggle: () => this.tabulate() }, el('summary', {}, 'Table of the visible points'), el('div'));
    this.words = el('details', { className: 'kl-words' }, el('summary', {}, 'In words'), el('p', { role: 'note', 'aria-label': 'what the picture shows' }));
    this.frame = el('div', { className: 'kl-frame' }, this.body, this.tip, this.pop);
    root.append(this.bar, this.frame, el('div', { className: 'kl-under' }, this.words, this.table), this.live);
    this.tools();
    this.watch = new ResizeObserver(() => this.soon()); this.watch.observe(this.frame);
    this.theme = new MutationObserver(() => this.soon()); this.theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light', 'class'] });
  }

  close() { this.watch.disconnect(); this.theme.disconnect(); }

  tools() {
    const select = (label, options, act) => {
      const s = el('select', { 'aria-label': label, title: label, onchange: () => act(s.value) });
      s.append(...options.map(([v, t]) => el('option', { value: v }, t)));
      return s;
    };
    this.against = select('horizontal axis', [], v => { this.choices[this.view] = v; this.whole(); });
    this.scaled = select('vertical scale', [['auto', 'scale: as fits'], ['log', 'logarithmic'], ['linear', 'linear']], v => { this.scale = v; this.soon(); });
    this.smoother = el('input', { type: 'range', min: 0, max: 0.98, step: 0.01, value: 0, 'aria-label': 'smoothing', title: 'smoothing: the average of what went before', oninput: () => { this.smooth = +this.smoother.value; this.soon(); } });
    this.reset = press('Whole', 'the whole picture again (double-click, or key 0)', () => this.whole());
    const save = select('save what is seen', [['', 'save as…'], ['png', 'PNG'], ['svg', 'SVG'], ['csv', 'CSV']], v => { save.value = ''; if (v) this.save(v); });
    this.bar.append(el('label', {}, 'x ', this.against), this.scaled, el('label', {}, 'smooth ', this.smoother), this.reset, save);
  }

  // --- what arrives --------------------------------------------------------------------------

  take(message, buffers) {
    const numbers = [Float64Array, Float32Array].map((Kind, n) => buffers[n] ? new Kind(buffers[n].buffer.slice(buffers[n].byteOffset, buffers[n].byteOffset + buffers[n].byteLength)) : []), at = [0, 0];
    if (message.all) this.store.clear();
    for (const [key, start, count, n] of message.arrays || []) {
      let column = this.store.get(key);
      if (!column) this.store.set(key, column = new Column());
      if (start > column.length) { this.host.gap(); return; }
      column.write(start, numbers[n].subarray(at[n], at[n] += count));
    }
    for (const key of message.drop || []) this.store.delete(key);
    if (message.spec) { this.spec(message.spec, buffers); }
    if (message.view !== undefined && message.view !== this.view) { this.view = message.view; this.zoomed(); this.hover(null); this.pop.hidden = true; }
    this.fresh = true; this.soon();
  }

  spec(spec, buffers) {
    const get = v => v && v.$ !== undefined ? this.store.get(v.$) : v;
    for (const plot of spec) for (const axes of plot.axes || []) for (const part of axes.parts) {
      for (const name of ['y', 'low', 'high', 'values']) part[name] = get(part[name]);
      if (part.x?.along) for (const k of Object.keys(part.x.along)) part.x.along[k] = get(part.x.along[k]); else if (part.x) part.x = get(part.x);
    }
    for (const plot of spec) if (plot.picture !== undefined) plot.url = URL.createObjectURL(new Blob([buffers[plot.picture]], { type: 'image/png' }));
    this.plots.forEach(p => p.url && URL.revokeObjectURL(p.url));
    this.plots = spec; this.build();
  }

  say(words) { this.told = words; this.words.querySelector('p').textContent = words; }

  // The elements for the plots; those that are there and fit are kept, zoom included.
  build() {
    const shape = JSON.stringify(this.plots.map(p => [p.title, p.heading, p.picture !== undefined, (p.axes || []).map(a => [a.width, a.y.label, a.parts.every(q => q.kind === 'series')])]));
    if (shape !== this.shape) {
      this.shape = shape; this.cells = []; this.body.replaceChildren();
      this.plots.forEach((plot, n) => {
        const row = el('div', { className: 'kl-row' });
        const title = el('div', { className: 'kl-title' }, el('b', {}, plot.heading ? `${plot.heading}: ${plot.title}` : plot.title), ' ', el('span', { className: 'kl-note' }, plot.note));
        this.body.append(title, row);
        if (plot.picture !== undefined) { row.append(el('img', { alt: plot.words, className: 'kl-picture' })); return; }
        plot.axes.forEach((axes, k) => row.append(this.cell(n, k, axes)));
      });
    }
    this.plots.forEach((plot, n) => {
      const row = this.body.querySelectorAll('.kl-row')[n], note = this.body.querySelectorAll('.kl-note')[n];
      put(note, plot.note);
      if (plot.url) { const img = row.querySelector('img'); img.src = plot.url; img.alt = plot.words; }
    });
  }

  cell(n, k, axes) {
    const canvas = el('canvas', { tabIndex: 0, role: 'img' }), marks = el('div', { className: 'kl-marks' });
    const place = el('div', { className: 'kl-cell' }, canvas, marks);
    place.style.flexGrow = axes.width;
    const cell = { n, k, canvas, marks, place, zoomY: null };
    this.cells.push(cell);
    canvas.addEventListener('pointermove', e => this.moved(cell, e));
    canvas.addEventListener('pointerleave', () => { if (!cell.drag) this.hover(null); });
    canvas.addEventListener('pointerdown', e => { if (e.button === 0) { cell.drag = [e.offsetX, e.offsetY, e.offsetX, e.offsetY]; canvas.setPointerCapture(e.pointerId); this.pop.hidden = true; } });
    canvas.addEventListener('pointerup', e => this.dragged(cell, e));
    canvas.addEventListener('dblclick', () => this.whole());
    canvas.addEventListener('wheel', e => this.wheel(cell, e), { passive: false });
    canvas.addEventListener('keydown', e => this.key(cell, e));
    return place;
  }

  // --- drawing -------------------------------------------------------------------------------

  soon() { if (!this.asked) { this.asked = true; requestAnimationFrame(() => { this.asked = false; this.draw(); }); } }

  axes(cell) { return this.plots[cell.n]?.axes?.[cell.k]; }

  choice(axes) {
    const names = axes.x.map(a => a.label);
    if (names.includes('cases') && axes.parts.some(p => this.host.size(p.run))) names.push('epochs');
    const wanted = this.choices[this.view];
    return [names.includes(wanted) ? wanted : names[0], names];
  }

  look(cell, axes) {
    return {
      x: this.choice(axes)[0], smooth: this.smooth, scale: this.scale, zoomX: this.zoomX(cell), zoomY: cell.zoomY,
      hidden: r => r && this.host.hidden(r), ink: (r, c, i) => this.host.ink(r, c, i, this.light), size: r => this.host.size(r), from: r => this.host.from(r), ahead: r => this.host.ahead(r),
    };
  }

  colours() {
    const css = getComputedStyle(this.body), v = (n, d) => css.getPropertyValue(n).trim() || d;
    const theme = { paper: v('--jp-layout-color0', '#fff'), ink: v('--jp-content-font-color1', '#222'), faint: v('--jp-content-font-color2', '#666'), grid: v('--jp-border-color3', '#e4e4e4'), font: v('--jp-ui-font-family', 'sans-serif').replace(/"/g, "'") };
    const probe = el('canvas').getContext('2d'); probe.fillStyle = theme.paper; probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = probe.getImageData(0, 0, 1, 1).data; this.light = r + g + b > 380;
    return theme;
  }

  draw() {
    if (!this.frame.isConnected || !this.frame.clientWidth) return;
    const theme = this.colours(), scale = window.devicePixelRatio || 1;
    this.offer();
    for (const cell of this.cells) {
      const axes = this.axes(cell);
      if (!axes) continue;
      const width = cell.place.clientWidth, height = cell.place.clientHeight, { canvas } = cell;
      if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) { canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale); }
      const c = canvas.getContext('2d');
      c.setTransform(scale, 0, 0, scale, 0, 0); c.clearRect(0, 0, width, height);
      cell.made = this.paint(c, cell, axes, width, height, theme);
      this.overlay(c, cell, axes, width, height, theme);
      canvas.setAttribute('aria-label', `${this.plots[cell.n].title}: ${axes.y.label || axes.title}. Left and right read the points, plus and minus zoom, 0 shows all. ${this.told || ''}`);
      canvas.title = '';
    }
    this.draws++;
    if (this.fresh) { this.fresh = false; this.frames++; this.body.dataset.frames = this.frames; }
    if (this.table.open) this.tabulate();
  }

  paint(c, cell, axes, width, height, theme) {
    const [part] = axes.parts, other = part && part.kind !== 'series' && part.values.length;
    return other ? drawOther(c, axes, width, height, theme) : drawAxes(c, axes, this.look(cell, axes), width, height, theme);
  }

  // Marks, the crosshair and the frame of a drag: what belongs to the page and not to the picture.
  overlay(c, cell, axes, width, height, theme, still) {
    const { made } = cell;
    if (!still) cell.marks.replaceChildren(...this.markButtons(cell, axes, width));
    const on = this.cursor && this.cursor.n === cell.n && (this.cursor.k === cell.k || axes.x.length > 1) && !still;
    if (made?.other && on) { const s = made.spot(this.cursor.x); c.strokeStyle = theme.ink; c.lineWidth = 1.5; c.strokeRect(s.x, s.y, s.w, s.h); }
    if (!made?.sx) return;
    const { sx, box } = made, bottom = height - box.bottom;
    for (const mark of this.plots[cell.n].marks) {
      const x = this.markAt(axes, mark);
      if (x === null || this.host.hidden(mark.run) || sx.at(x) < box.left - 1 || sx.at(x) > width - box.right + 1) continue;
      c.strokeStyle = this.host.ink(mark.run, '', 0, this.light).colour; c.lineWidth = 1; c.setLineDash([4, 3]);
      c.beginPath(); c.moveTo(sx.at(x), box.top - 4); c.lineTo(sx.at(x), bottom); c.stroke(); c.setLineDash([]);
      if (still) { c.textAlign = 'left'; c.fillStyle = theme.faint; c.fillText(mark.label, sx.at(x) + 3, box.top - 8); }
    }
    if (cell.drag && !still) {
      const [a, b, d, e] = cell.drag;
      c.fillStyle = theme.ink; c.globalAlpha = 0.1; c.fillRect(Math.min(a, d), Math.min(b, e), Math.abs(d - a), Math.abs(e - b)); c.globalAlpha = 1;
    }
    const at = on ? this.cursor.x : NaN;
    if (at >= sx.low && at <= sx.high) {
      c.strokeStyle = theme.faint; c.lineWidth = 1; c.beginPath(); c.moveTo(sx.at(at), box.top); c.lineTo(sx.at(at), bottom); c.stroke();
      for (const { part, p, ink } of made.found) {
        if (part.shape !== 'line' && part.shape !== 'dots') continue;
        const i = nearest(p, at);
        if (p.x[i] < sx.low || p.x[i] > sx.high) continue;
        c.fillStyle = ink.colour; c.beginPath(); c.arc(sx.at(p.x[i]), made.sy.at(p.y[i]), 4, 0, 7); c.fill();
      }
    }
  }

  markAt(axes, mark) {
    const [x] = this.choice(axes);
    if (axes.x.length < 2 && !(x in mark.at)) return null;
    if (x === 'epochs') return mark.at.cases !== undefined && this.host.size(mark.run) ? mark.at.cases / this.host.size(mark.run) : null;
    return mark.at[x] ?? null;
  }

  markButtons(cell, axes, width) {
    const { made } = cell, ends = [];
    if (!made || made.empty || made.other) return [];
    return this.plots[cell.n].marks.flatMap(mark => {
      const x = this.markAt(axes, mark), at = x === null ? NaN : made.sx.at(x);
      if (!(at >= made.box.left - 1 && at <= width - made.box.right + 1) || this.host.hidden(mark.run)) return [];
      const text = mark.label.length > 18 ? mark.label.slice(0, 17) + '…' : mark.label, wide = 7 + 6 * text.length;
      let row = ends.findIndex(end => end < at); if (row < 0) row = ends.length;
      if (row > 2) row = 2; ends[row] = at + wide;
      const b = press(text, `after step ${mark.step}: ${mark.text}`, e => this.explain(mark, e.currentTarget), { className: 'kl-mark', 'aria-label': `swap after step ${mark.step} of ${mark.run}: ${mark.text}` });
      b.style.left = `${at}px`; b.style.top = `${4 + 15 * row}px`; b.style.setProperty('--ink', this.host.ink(mark.run, '', 0, this.light).colour);
      return [b];
    });
  }

  explain(mark, beside) {
    const back = this.host.canRewind(mark.run) ? press('Rewind to here', '', () => { this.pop.hidden = true; this.host.send({ t: 'rewind', run: mark.run, step: mark.step }); }) : null;
    const close = press('Close', '', () => { this.pop.hidden = true; });
    this.pop.replaceChildren(el('div', {}, el('b', {}, `${mark.run}, after step ${mark.step}`)), el('div', {}, mark.text), el('div', { className: 'kl-note' }, mark.before ? `before: ${mark.before}` : ''), el('div', {}, back, ' ', close));
    const a = beside.getBoundingClientRect(), b = this.frame.getBoundingClientRect();
    this.pop.hidden = false;
    this.pop.style.left = `${Math.max(0, Math.min(a.left - b.left, b.width - 300))}px`; this.pop.style.top = `${a.bottom - b.top + 4}px`;
    (back || close).focus();
  }

  offer() {
    const names = [...new Set(this.cells.flatMap(c => { const a = this.axes(c); return a && a.x.length > 1 ? this.choice(a)[1] : []; }))];
    if (names.join() !== this.offered) { this.offered = names.join(); this.against.replaceChildren(...names.map(n => el('option', { value: n }, n))); }
    const first = this.cells.map(c => this.axes(c)).find(a => a && a.x.length > 1);
    this.against.parentElement.hidden = !first;
    if (first) this.against.value = this.choice(first)[0];
    const zoomed = this.cells.some(c => c.zoomY || c.zoomX) || Object.keys(this.zooms).length > 0;
    this.reset.disabled = !zoomed;
  }

  // --- hover, zoom, keys ---------------------------------------------------------------------

  moved(cell, e) {
    if (cell.drag) { cell.drag[2] = e.offsetX; cell.drag[3] = e.offsetY; this.soon(); return; }
    if (cell.made?.other) { const k = cell.made.find(e.offsetX, e.offsetY); return this.hover(k < 0 ? null : cell, k, e); }
    if (!cell.made?.sx) return;
    const { sx, box } = cell.made;
    if (e.offsetX < box.left || e.offsetX > cell.place.clientWidth - box.right) return this.hover(null);
    this.hover(cell, sx.back(e.offsetX), e);
  }

  // The values of all runs at an x: what the tip shows and a screen reader hears.
  values(cell, x) {
    return cell.made.found.flatMap(({ part, p, ink }) => {
      const i = nearest(p, x);
      if (i < 0) return [];
      const near = Math.abs(cell.made.sx.at(p.x[i]) - cell.made.sx.at(x));
      if (part.shape !== 'line' && part.shape !== 'dots' && near > 8) return [];
      const outside = x < p.x[0] || x > p.x[p.x.length - 1];
      if (outside && near > 8) return [];
      const name = part.run ? (['line', 'dots'].includes(part.shape) && !part.low ? part.run : `${part.run}, ${part.name}`) : part.name;
      return [{ name, x: p.x[i], y: p.raw[i], smooth: this.smooth && part.shape === 'line' ? p.y[i] : null, low: part.low?.at(p.i[i]), high: part.high?.at(p.i[i]), area: part.shape === 'area', colour: ink.colour }];
    });
  }

  // What the tip says at a place: a heading, lines of [colour, name, number, more], and where it stands.
  saidAt(cell, x) {
    const { made } = cell;
    if (made.other) { const s = made.spot(x); return { head: s.name, lines: [['', '', short(s.value), '']], px: s.x + s.w, py: s.y }; }
    const found = this.values(cell, x), shown = found.reduce((a, b) => a && Math.abs(a.x - x) <= Math.abs(b.x - x) ? a : b, null);
    return {
      head: shown && `${this.choice(this.axes(cell))[0]} ${short(shown.x)}`, px: made.sx.at(x), py: 40,
      lines: found.map(v => [v.colour, `${v.name} `, short(v.area ? v.y - v.low : v.y), v.area ? '' : (v.smooth === null ? '' : ` (smoothed ${short(v.smooth)})`) + (v.low === undefined ? '' : ` (${short(v.low)} … ${short(v.high)})`)]),
    };
  }

  hover(cell, x, e) {
    this.cursor = cell ? { n: cell.n, k: cell.k, x } : null;
    const said = cell && this.saidAt(cell, x), { tip } = this;
    tip.hidden = !said?.lines.length;
    if (!tip.hidden) {
      tip.replaceChildren(el('div', {}, said.head), ...said.lines.map(([colour, name, number, more]) => {
        const dot = el('span', { className: 'kl-dot' }); dot.style.background = colour; dot.hidden = !colour;
        return el('div', {}, dot, name, el('b', {}, number), more);
      }));
      const frame = this.frame.getBoundingClientRect(), place = cell.place.getBoundingClientRect(), px = place.left - frame.left + said.px;
      tip.style.left = `${px + 14 + tip.offsetWidth < frame.width ? px + 14 : Math.max(0, px - 14 - tip.offsetWidth)}px`;
      tip.style.top = `${place.top - frame.top + Math.min(e?.offsetY ?? said.py, 180)}px`;
      if (!e) this.live.textContent = `${said.head}: ${said.lines.map(([, name, number]) => name + number).join(', ')}`;
    }
    this.soon();
  }

  zoomX(cell) { return this.axes(cell).x.length > 1 ? this.zooms[cell.n] : cell.zoomX; }
  setZoomX(cell, range) { if (this.axes(cell).x.length > 1) { range ? this.zooms[cell.n] = range : delete this.zooms[cell.n]; } else cell.zoomX = range; }
  whole() { this.zoomed(); this.soon(); }
  zoomed() { this.zooms = {}; for (const cell of this.cells) cell.zoomX = cell.zoomY = null; }

  dragged(cell, e) {
    const d = cell.drag; cell.drag = null; this.hover(null);
    if (!d || !cell.made?.sx) return;
    const [x0, y0] = d, { sx, sy } = cell.made, wide = Math.abs(e.offsetX - x0), tall = Math.abs(e.offsetY - y0);
    if (wide > 6) this.setZoomX(cell, [sx.back(Math.min(x0, e.offsetX)), sx.back(Math.max(x0, e.offsetX))]);
    if (tall > 24 && wide > 6) cell.zoomY = [sy.back(Math.max(y0, e.offsetY)), sy.back(Math.min(y0, e.offsetY))];
    this.soon();
  }

  wheel(cell, e) {
    if (!cell.made?.sx) return;
    e.preventDefault();
    this.zoomBy(cell, Math.exp(Math.max(-1, Math.min(1, e.deltaY / 300))), e.shiftKey ? null : e.offsetX, e.shiftKey ? e.offsetY : null);
  }

  zoomBy(cell, factor, px, py) {
    const of = (scale, p) => [p + (scale.from - p) * factor, p + (scale.to - p) * factor].map(v => scale.back(v));
    if (px !== null) this.setZoomX(cell, of(cell.made.sx, px)); else cell.zoomY = of(cell.made.sy, py);
    this.soon();
  }

  key(cell, e) {
    const { made } = cell, first = made?.found?.[0], steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (made?.other) {
      const last = made.count - 1, k = { Home: 0, End: last }[e.key] ?? (this.cursor?.x ?? -1) + steps[e.key];
      if (!(k === k)) return;
      e.preventDefault(); e.stopPropagation();
      return this.hover(cell, Math.max(0, Math.min(last, k)));
    }
    if (!made?.sx) return;
    const middle = (made.sx.from + made.sx.to) / 2, at = this.cursor?.x ?? made.sx.back(middle);
    const here = made.sx.at(at);
    if (e.key in steps) {
      const i = nearest(first.p, at) + steps[e.key], p = first.p;
      this.hover(cell, p.x[Math.max(0, Math.min(p.x.length - 1, i))]);
    } else if (e.key === 'Home' || e.key === 'End') this.hover(cell, first.p.x[e.key === 'Home' ? 0 : first.p.x.length - 1]);
    else if (e.key === '+' || e.key === '=') this.zoomBy(cell, 0.7, here, null);
    else if (e.key === '-') this.zoomBy(cell, 1 / 0.7, here, null);
    else if (e.key === '0') this.whole();
    else if (e.key === 'Escape') this.hover(null);
    else return;
    e.preventDefault(); e.stopPropagation();
  }

  // --- what is seen, as a table and as files ---------------------------------------------------

  seen(cell) { return seenIn(cell); }
  tabulate() { this.table.querySelector('div').replaceChildren(...this.table.open ? tables(this) : []); }
  save(kind) { const name = `${(this.view || 'chart').replace(/\W/g, '_')}.${kind}`; kind === 'csv' ? saveAs(new Blob([csv(this)], { type: 'text/csv' }), name) : savePicture(this, kind, name); }
}

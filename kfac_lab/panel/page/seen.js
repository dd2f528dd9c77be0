// What of a chart is seen: as points, as tables for a screen reader, as CSV, PNG and SVG.

const saveAs = (blob, name) => {
  const a = el('a', { href: URL.createObjectURL(blob), download: name });
  a.click(); setTimeout(() => URL.revokeObjectURL(a.href), 5000);
};

const seenIn = ({ made }) => !made?.sx ? [] : made.found.map(({ part, p }) => ({
  run: part.run || '', name: part.name,
  points: p.x.map((x, i) => [x, p.raw[i]]).filter(([x]) => x >= made.sx.low && x <= made.sx.high),
}));

const spots = (cell, most = Infinity) => Array.from({ length: Math.min(cell.made?.other ? cell.made.count : 0, most) }, (_, k) => cell.made.spot(k));

const MOST = 200;  // lines of a table

const tables = chart => {
  const row = (name, numbers) => el('tr', {}, el('th', { scope: 'row' }, name), ...numbers.map(v => el('td', {}, v === undefined ? '' : short(v))));
  const table = (caption, heads, rows) => el('table', {}, el('caption', {}, caption), el('thead', {}, el('tr', {}, ...heads.map(t => el('th', { scope: 'col' }, t)))), el('tbody', {}, ...rows));
  return chart.cells.flatMap(cell => {
    const axes = chart.axes(cell), series = chart.seen(cell), title = axes.title || axes.y.label || chart.plots[cell.n].title;
    if (cell.made?.other) {
      const { count } = cell.made;
      return [table(count > MOST ? `${title}: the first ${MOST} of ${count}` : title, ['', 'value'], spots(cell, MOST).map(s => row(s.name, [s.value])))];
    }
    if (!series.length) return [];
    const rows = new Map();
    series.forEach((s, k) => s.points.forEach(([x, y]) => { if (!rows.has(x)) rows.set(x, []); rows.get(x)[k] = y; }));
    const xs = [...rows.keys()].sort((a, b) => a - b), every = Math.ceil(xs.length / MOST);
    const shown = xs.filter((_, i) => i % every === 0 || i === xs.length - 1);
    return [table(every > 1 ? `${title}: every ${every}th of ${xs.length} points` : title, [chart.choice(axes)[0], ...series.map(s => [s.run, s.name].filter(Boolean).join(', '))], shown.map(x => row(short(x), series.map((_, k) => rows.get(x)[k]))))];
  });
};

const csv = chart => {
  const quote = t => /[",\n]/.test(t) ? `"${t.replace(/"/g, '""')}"` : t, lines = [['axis', 'run', 'series', 'against', 'at', 'value']];
  for (const cell of chart.cells) {
    const axes = chart.axes(cell), title = axes.y.label || axes.title;
    for (const s of chart.seen(cell)) for (const [x, y] of s.points) lines.push([title, s.run, s.name, chart.choice(axes)[0], x, y]);
    spots(cell).forEach((s, k) => lines.push([axes.title, '', s.name, '', k, s.value]));
  }
  return lines.map(line => line.map(v => quote(String(v))).join(',') + '\n').join('');
};

// The chart as it is seen, its titles and a legend, by whatever context it is drawn into.
const savePicture = (chart, kind, name) => {
  const theme = chart.colours(), width = chart.frame.clientWidth, height = Math.max(...chart.cells.map(({ place }) => place.offsetTop + place.clientHeight), 60) + 26;
  const canvas = el('canvas', { width: 2 * width, height: 2 * height }), svg = kind === 'svg' ? new Svg(width, height) : null, c = svg || canvas.getContext('2d');
  if (!svg) c.scale(2, 2);
  c.fillStyle = theme.paper; c.fillRect(0, 0, width, height);
  for (const cell of chart.cells) {
    const { place } = cell, given = [c, cell, chart.axes(cell), place.clientWidth, place.clientHeight, theme];
    c.save(); c.translate(place.offsetLeft, place.offsetTop); chart.paint(...given); chart.overlay(...given, true); c.restore();
  }
  c.font = `12px ${theme.font}`; c.textAlign = 'left'; c.textBaseline = 'middle'; c.fillStyle = theme.ink;
  chart.body.querySelectorAll('.kl-title').forEach(t => c.fillText(t.textContent.trim(), 8, t.offsetTop + 9));
  let x = 8;
  for (const run of chart.host.legend()) {
    c.fillStyle = chart.host.ink(run, '', 0, chart.light).colour; c.fillRect(x, height - 15, 12, 4);
    c.fillStyle = theme.ink; c.fillText(run, x + 16, height - 13); x += 32 + 7 * run.length;
  }
  if (svg) saveAs(new Blob([svg.text()], { type: 'image/svg+xml' }), name); else canvas.toBlob(blob => saveAs(blob, name));
};

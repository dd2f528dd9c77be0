// The page's side of a panel: status with a clock of its own, the chart, and the list of runs.

const clock = s => s >= 3600 ? `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min` : s >= 60 ? `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s` : `${s.toFixed(1)} s`;
const INKS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'];

// A colour as light as a dark page needs it.
const lighter = colour => {
  const rgb = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16) / 255), light = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
  const t = Math.max(0, 0.55 - light) / (1 - light);
  return `rgb(${rgb.map(v => Math.round(255 * (v + t * (1 - v))))})`;
};

class Page {
  constructor(model, root) {
    this.model = model; this.runs = []; this.byLabel = new Map(); this.mine = new Map(); this.status = null; this.got = false;
    root.classList.add('kl-root'); root.dataset.lmSuppressShortcuts = 'true';
    this.state = el('div', { className: 'kl-status' });
    this.list = el('div', { className: 'kl-runs' });
    root.append(this.state);
    this.chart = new Chart(root, this);
    root.append(this.list);
    this.parts();
    this.hear = (message, buffers) => this.take(message, buffers);
    model.on('msg:custom', this.hear);
    this.hello(); this.again = setInterval(() => { if (!this.got) this.hello(); }, 2000);
    this.ticking = setInterval(() => this.tick(), 200);
    root.kfacLab = this;  // for tests
    // Where this has loaded, the pictures that take its place are not needed.
    this.there = setInterval(() => { const panel = root.closest('.kfac-lab-panel'); if (panel) { panel.classList.add('kl-live'); clearInterval(this.there); } }, 50);
  }

  close() { this.model.off('msg:custom', this.hear); [this.again, this.ticking, this.there].forEach(clearInterval); this.chart.close(); }
  hello() { this.send({ t: 'hello' }); }
  gap() { if (this.got) { this.got = false; this.hello(); } }
  send(message) { this.model.send(message); }

  take(message, buffers) {
    if (message.t !== 'up') return;
    if (message.n <= this.number && !message.all) return;  // overtaken by a later one
    this.number = message.n;
    if (message.all) this.got = true;
    if (!this.got) return;
    if (message.words) this.chart.say(message.words);
    if (message.runs) { this.runs = message.runs; this.byLabel = new Map(this.runs.map(r => [r.label, r])); this.listed(); }
    if (message.status) { this.status = message.status; this.since = performance.now(); this.told(); this.live(); }
    if (message.spec || message.arrays || message.view !== undefined) this.chart.take(message, buffers.map(b => b.buffer ? b : new DataView(b)));
    else if (message.runs) this.chart.soon();
  }

  // --- what the chart asks -------------------------------------------------------------------

  size(label) { return this.byLabel.get(label)?.size; }
  from(label) { return this.byLabel.get(label)?.from || 0; }
  canRewind(label) { return this.byLabel.get(label)?.rewinds; }
  hidden(label) {
    if (this.mine.has(label)) return this.mine.get(label);
    const run = this.byLabel.get(label);
    return run ? run.hidden : false;
  }
  legend() { return this.runs.filter(r => !this.hidden(r.label)).map(r => r.label); }
  ink(label, colour, order, light) {
    const run = this.byLabel.get(label);
    const c = run ? run.colour : colour || INKS[order % 7], dash = run ? run.dash : Object.keys(DASHES)[order % 7];
    return { colour: light || c[0] !== '#' ? c : lighter(c), dash, thin: run?.thin };
  }

  // --- status --------------------------------------------------------------------------------

  parts() {
    const s = n => (this[n] = el('span', { className: `kl-${n}` }));
    this.progress = el('progress', { max: 1, value: 0, 'aria-label': 'progress' });
    const nudge = (what, sign, factor) => press(sign, `${what} of the run ${sign}: from what it is now, as a swap at the next step`, () => this.send({ t: 'nudge', what, factor }), { 'aria-label': `${what} now ${sign}` });
    this.lamBox = el('span', { className: 'kl-nudge', title: 'λ as the run has it now; the recipe’s λ is where a run starts' }, 'λ now ', s('lam'), nudge('λ', '÷2', 0.5), nudge('λ', '×2', 2));
    this.gammaBox = el('span', { className: 'kl-nudge', title: 'γ as the run has it now' }, 'γ now ', s('gamma'), nudge('γ', '÷2', 0.5), nudge('γ', '×2', 2));
    this.state.append(
      el('div', { className: 'kl-line' }, s('what'), s('steps'), this.progress, s('time'), s('left')),
      el('div', { className: 'kl-line' }, s('loss'), s('error'), s('rho'), this.lamBox, this.gammaBox));
    this.others = el('div', { className: 'kl-others' });
    this.state.append(this.others);
  }

  told() {
    const t = this.status;
    put(this.what, `${t.label}: ${t.state}`); this.what.dataset.state = t.state;
    put(this.loss, `loss ${short(t.loss)}`); put(this.error, `error ${short(t.error)}`); put(this.rho, t.rho === t.rho && t.rho !== null ? `ρ ${short(t.rho)}` : '');
    put(this.lam, short(t.lam)); put(this.gamma, short(t.gamma));
    this.lamBox.hidden = t.lam === null; this.gammaBox.hidden = t.gamma === null;
    for (const b of this.state.querySelectorAll('.kl-nudge button')) b.hidden = !t.nudges;
    const key = JSON.stringify(t.others || []);
    if (key !== this.othersKey) {
      this.othersKey = key;
      this.others.replaceChildren(...(t.others || []).map(o => el('div', {}, `Also training in this kernel: ${o.name} `, press(`Stop ${o.name}`, '', () => this.send({ t: 'stop', panel: o.id })))));
    }
    this.tick();
  }

  // Of the step that is under way: seconds since it began, and the share that it has probably done.
  under() {
    const t = this.status, going = t && ['running', 'pausing', 'stopping'].includes(t.state);
    const since = going ? (performance.now() - this.since) / 1000 + t.ago : 0;
    return { going, since, share: t?.each ? Math.min(since / t.each, 0.95) : 0 };
  }

  // The same for a run's line, where steps are so long that it would stand still.
  ahead(label) {
    const t = this.status, { going, since, share } = this.under();
    return going && label === t.label && Math.max(since, t.each) > 0.5 ? { step: t.step, share } : null;
  }

  // The clock goes on between two steps, however long they take, and so does the line's end.
  tick() {
    const t = this.status;
    if (!t) return;
    const each = t.each || 0, { going, since, share: part } = this.under(), seconds = t.seconds + since;
    if (this.ahead(t.label)) this.chart.soon();
    const goal = t.goal && t.goal > t.step ? t.goal : 0;
    put(this.steps, t.goal ? `step ${t.step} of ${t.goal}` : `step ${t.step}`);
    put(this.time, clock(seconds) + (going && since > 1.5 ? ` · ${since.toFixed(1)} s in this step` : ''));
    let share = 0, left = '';
    if (going && goal) { share = (t.step + part - t.begun) / (goal - t.begun); if (each) left = `about ${clock(Math.max(0, (goal - t.step) * each - since))} left`; }
    else if (going && t.limit) { share = (seconds - t.began) / (t.limit - t.began); left = `about ${clock(Math.max(0, t.limit - seconds))} left`; }
    else if (going) left = 'until Stop';
    else if (t.state === 'finished') share = 1;
    this.progress.hidden = !(going || share); put(this.left, left);
    if (going && !goal && !t.limit) this.progress.removeAttribute('value'); else this.progress.value = Math.max(0, Math.min(1, share));
  }

  // --- runs ----------------------------------------------------------------------------------

  live() {  // step and state of each run, without building the list again
    for (const [label, step, state, error] of this.status.runs || []) {
      const row = this.rows?.get(label);
      if (!row) continue;
        put(row.step, String(step)); put(row.state, state); put(row.error, short(error));
    }
  }

  toggle(label) { const h = !this.hidden(label); this.mine.set(label, h); this.send({ t: 'hide', run: label, hidden: h }); this.listed(); this.chart.soon(); }

  isolate(label) {
    const alone = this.runs.every(r => (r.label === label) !== this.hidden(r.label));
    for (const r of this.runs) { const h = alone ? false : r.label !== label; this.mine.set(r.label, h); }
    this.send({ t: 'isolate', run: alone ? null : label }); this.listed(); this.chart.soon();
  }

  rename(label, cell) {
    const input = el('input', { value: label, 'aria-label': `new name of ${label}`, size: 18 });
    const done = keep => { if (input.gone) return; input.gone = true; this.editing = false; if (keep && input.value.trim() && input.value !== label) this.send({ t: 'rename', run: label, to: input.value.trim() }); this.listed(); };
    input.addEventListener('keydown', e => { e.stopPropagation(); if (e.key === 'Enter') done(true); if (e.key === 'Escape') done(false); });
    input.addEventListener('blur', () => done(true));
    this.editing = true; cell.replaceChildren(input); input.focus(); input.select();
  }

  listed() {
    if (this.editing) return;
    const focused = document.activeElement?.getAttribute?.('aria-label'), inside = this.list.contains(document.activeElement);
    for (const r of this.runs) if (this.mine.get(r.label) === r.hidden) this.mine.delete(r.label);
    this.rows = new Map();
    const groups = new Map();
    for (const r of this.runs) groups.set(r.group, [...groups.get(r.group) || [], r]);
    const body = el('tbody');
    for (const [group, runs] of groups) {
      if (group) body.append(el('tr', { className: 'kl-group' }, el('td', {}), el('td', {}), el('th', { colSpan: 6, scope: 'rowgroup' }, `${group}: ${runs.length} seeds, band from lowest to highest`)));
      for (const r of runs) body.append(this.row(r));
    }
    const head = ['train', '', 'run', 'recipe', 'state', 'step', 'error', ''].map(t => el('th', { scope: 'col' }, t));
    this.list.replaceChildren(el('table', { 'aria-label': 'runs' }, el('thead', {}, el('tr', {}, ...head)), body));
    if (inside && focused) this.list.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
    this.chart.soon();
  }

  row(r) {
    const b = (text, label, act, off) => press(text, label, act, { 'aria-label': `${label} ${r.label}`, disabled: !!off });
    const swatch = b('', this.hidden(r.label) ? 'show' : 'hide', () => this.toggle(r.label));
    swatch.className = 'kl-swatch'; swatch.setAttribute('aria-pressed', String(!this.hidden(r.label)));
    swatch.style.setProperty('--ink', this.ink(r.label, '', 0, this.chart.light ?? true).colour);
    const name = el('td'), label = press(r.label, 'the buttons mean this run; double-click renames', () => this.send({ t: 'select', run: r.label }), { className: 'kl-name', ondblclick: () => this.rename(r.label, name) });
    name.append(label);
    const cells = { step: el('td', {}, String(r.step)), state: el('td', {}, r.state), error: el('td', {}, short(r.error)) };
    this.rows.set(r.label, cells);
    const train = r.trains === null ? el('td') : el('td', {}, el('input', { type: 'checkbox', checked: r.trains, 'aria-label': `train ${r.label} too`, title: 'Start trains it too', onchange: e => this.send({ t: 'train', run: r.label, on: e.target.checked }) }));
    const acts = el('td', { className: 'kl-acts' }, b('◎', 'isolate', () => this.isolate(r.label)), b('✎', 'rename', () => this.rename(r.label, name)));
    if (r.manages) acts.append(b('+', 'duplicate', () => this.send({ t: 'duplicate', run: r.label })), b('✕', 'remove', () => this.send({ t: 'remove', run: r.label }), this.runs.length < 2));
    const tr = el('tr', { className: [r.current ? 'kl-current' : '', this.hidden(r.label) ? 'kl-off' : ''].join(' ') }, train, el('td', {}, swatch), name, el('td', { title: r.about }, r.recipe), cells.state, cells.step, cells.error, acts);
    if (r.current) tr.setAttribute('aria-current', 'true');
    return tr;
  }
}

export default { render({ model, el }) { const page = new Page(model, el); return () => page.close(); } };

/* A sweep: what came of each run, as a table and as intervals on one axis. */
(() => {
  'use strict';
  const { el, svg, number, interval, tip, count } = CF;

  document.head.append(el('style', {}, `
    .sw-plot { width: 100%; height: auto; max-width: 1000px; display: block; }
    .sw-plot text { fill: var(--fg); font-size: 12px; } .sw-plot .dim { fill: var(--muted); }
    .sw-plot .axis { stroke: var(--line); } .sw-plot .level { stroke: var(--muted); stroke-dasharray: 3 3; }
    .sw-plot .span { stroke: var(--pos); stroke-width: 2; } .sw-plot .dot { fill: var(--pos); }
    .sw-plot .open { fill: var(--card); stroke: var(--pos); stroke-width: 2; } .sw-plot a text { fill: var(--accent); }
  `));

  const WORDS = { finished: 'finished', reused: 'reused', failed: 'failed', interrupted: 'interrupted', 'not run': 'not run' };
  const { yes, seconds, count: thousands, whole } = CF.cells;
  const link = (cell, text) => {
    if (!cell.run || !cell.report) return text;
    return el('a', { href: `../${encodeURIComponent(cell.run)}/report.html` }, text);
  };

  CF.section('about', 'Sweep', (root, data) => {
    const facts = [['file', data.file], ...Object.entries(data.same), ['differs between runs', data.varied.join(', ') || 'nothing']];
    root.append(el('dl', {}, facts.map(([name, text]) => [el('dt', {}, name), el('dd', {}, text)])));
    const told = Object.entries(data.counts).filter(([, n]) => n).map(([state, n]) => `${n} ${WORDS[state]}`);
    root.append(el('p', {}, `${count(data.total, 'run')}: ${told.join(', ')}.`));
    root.append(el('p', { class: 'muted' }, 'The same as data: ', el('a', { href: 'sweep.csv' }, 'sweep.csv'), ', ', el('a', { href: 'sweep.json' }, 'sweep.json'), '. Go on, or run it again:'));
    root.append(el('pre', {}, CF.words(data.command)));
  });

  CF.section('table', 'Runs', (root, cells) => {
    const [first, ...others] = CF.data.columns;
    const look = (c) => (c.state === 'failed' ? 'warn' : c.state === 'finished' || c.state === 'reused' ? null : 'muted');
    CF.listing(root, [
      { title: first, choose: true, value: (c) => c.told[first], cell: (c) => link(c, c.told[first] || 'run') },
      ...others.map((name) => ({ title: name, choose: true, value: (c) => c.told[name] })),
      { title: 'state', choose: true, value: (c) => WORDS[c.state], cell: (c) => whole(WORDS[c.state], look(c)) },
      { title: 'faithfulness', num: true, limit: 'least', value: (c) => c.faithfulness && c.faithfulness.value, cell: (c) => (c.faithfulness ? whole(interval(c.faithfulness, 2)) : '') },
      { title: 'edges', num: true, limit: 'most', value: (c) => c.edges, cell: (c) => thousands(c.edges) },
      { title: 'nodes', num: true, value: (c) => c.nodes },
      { title: 'certified', choose: true, value: (c) => yes(c.certified) },
      { title: 'backups', num: true, value: (c) => c.backups },
      { title: 'accuracy', num: true, value: (c) => c.accuracy, cell: (c) => (c.accuracy === null ? '' : CF.percent(c.accuracy, 0)) },
      { title: 'time', num: true, value: (c) => c.seconds, cell: (c) => whole(seconds(c.seconds)) },
      { title: 'why not', value: (c) => c.problem || '' },
    ], cells, { caption: 'runs' });
  });

  CF.section('faithfulness', 'Faithfulness with 95 % intervals', (root, cells) => {
    const usable = (x) => x !== null && Number.isFinite(x);
    const ends = (c) => [c.faithfulness.value, c.faithfulness.low, c.faithfulness.high].filter(usable);
    const low = Math.min(0, ...cells.flatMap(ends)), high = Math.max(1, ...cells.flatMap(ends));
    const longest = Math.max(...cells.map((c) => c.label.length));
    const W = 900, ROW = 24, T = 26, L = Math.min(420, 20 + 6.6 * longest), R = 90, H = T + ROW * cells.length + 24;
    const x = (v) => L + ((W - L - R) * (v - low)) / (high - low || 1);
    const parts = [];
    for (let v = Math.ceil(low * 5) / 5; v <= high + 1e-9; v += 0.2) {
      const main = Math.abs(v) < 1e-9 || Math.abs(v - 1) < 1e-9;
      parts.push(svg('line', { class: main ? 'level' : 'axis', x1: x(v), x2: x(v), y1: T - 6, y2: H - 22 }));
      if ((high - low) <= 3 || main) parts.push(svg('text', { class: 'dim', x: x(v), y: H - 6, 'text-anchor': 'middle' }, number(v, 1)));
    }
    parts.push(svg('text', { class: 'dim', x: W - 4, y: T - 10, 'text-anchor': 'end' }, 'edges'));
    cells.forEach((c, i) => {
      const y = T + ROW * i + ROW / 2, f = c.faithfulness;
      const label = c.label.length > 62 ? `${c.label.slice(0, 61)}…` : c.label;
      const text = svg('text', { x: L - 10, y: y + 4, 'text-anchor': 'end' }, label);
      parts.push(c.report ? svg('a', { href: `../${encodeURIComponent(c.run)}/report.html` }, text) : text);
      if (usable(f.low) && usable(f.high)) parts.push(svg('line', { class: 'span', x1: x(f.low), x2: x(f.high), y1: y, y2: y }));
      const told = `${c.label}\nfaithfulness ${interval(f)} under ${c.ablation} ablation\n${count(c.edges || 0, 'edge')}${c.certified === null ? '' : c.certified ? '\ncertified' : '\nnot certified'}`;
      const dot = svg('circle', { class: c.certified ? 'dot' : 'open', cx: x(f.value), cy: y, r: 5, tabindex: 0, role: 'img', 'aria-label': told.replaceAll('\n', '; ') });
      tip(dot, () => told);
      parts.push(dot, svg('text', { class: 'dim', x: W - 4, y: y + 4, 'text-anchor': 'end' }, c.edges === null ? '' : c.edges.toLocaleString('en')));
    });
    root.append(svg('svg', { class: 'sw-plot', viewBox: `0 0 ${W} ${H}`, role: 'group', 'aria-label': 'faithfulness of each run' }, parts));
    root.append(el('p', { class: 'muted' }, 'Filled: certified. Dashed: the empty circuit (0) and the whole model (1). Runs under different ablations, metrics or prompts measure different things.'));
  });
})();

/* Every run of a folder, and every sweep, with links to their pages. */
(() => {
  'use strict';
  const { el, svg, number, interval } = CF;

  document.head.append(el('style', {}, `
    .thumb { width: 104px; height: 50px; display: block; background: var(--soft); border-radius: 4px; }
    .thumb line { stroke: var(--pos); opacity: 0.75; } .thumb line.minus { stroke: var(--neg); }
    .thumb circle { fill: var(--card); stroke: var(--muted); } .thumb .k0 { fill: var(--head); stroke: var(--head-line); }
    .thumb .k2 { fill: var(--mlp); stroke: var(--mlp-line); } .thumb .k1, .thumb .k4 { fill: var(--input); stroke: var(--input-line); }
    .thumb .k5 { fill: var(--feature); stroke: var(--feature-line); }
    .ix-name { font-weight: 600; } .ix-sub { color: var(--muted); font-size: 0.86em; } .ix-sub.warn { color: var(--warn); }
  `));

  const { yes, seconds, count: thousands, whole } = CF.cells;

  const faithful = (run) => {
    if (!run.faithfulness) return '';
    const [value, ...ends] = interval(run.faithfulness, 2).split(' ');
    return [value, el('div', { class: 'ix-sub' }, ends.join(' '))];
  };

  const thumb = (drawn, label) => {
    if (!drawn || !drawn.levels.length) return '';
    const W = 132, H = 64, tall = Math.max(1, ...drawn.levels);
    const rows = new Map();
    drawn.levels.forEach((level, i) => rows.set(level, [...(rows.get(level) || []), i]));
    const at = drawn.levels.map((level, i) => {
      const row = rows.get(level);
      return [(W * (row.indexOf(i) + 1)) / (row.length + 1), H - 6 - ((H - 12) * level) / tall];
    });
    return svg('svg', { class: 'thumb', viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': label },
      drawn.edges.map(([a, b, size, minus]) => svg('line', {
        class: minus ? 'minus' : null, x1: at[a][0].toFixed(1), y1: at[a][1].toFixed(1), x2: at[b][0].toFixed(1), y2: at[b][1].toFixed(1),
        'stroke-width': (0.4 + 1.8 * size).toFixed(2),
      })),
      at.map(([x, y], i) => svg('circle', { class: `k${drawn.kinds[i]}`, cx: x.toFixed(1), cy: y.toFixed(1), r: 2.6 })));
  };

  const KINDS = { circuit: 'circuit', features: 'feature graph', backups: 'backups alone' };
  const bad = (run) => run.status !== 'finished';

  CF.section('runs', 'Runs', (root, runs) => {
    const named = (run) => el('div', { class: 'broken' },
      run.link ? el('a', { class: 'ix-name', href: run.link }, run.name) : el('span', { class: 'ix-name' }, run.name),
      el('div', { class: 'ix-sub' }, run.conditions
        ? `${run.conditions.ablation} ablation, ${run.conditions.counterfactual}, ${run.conditions.metric}, ${run.conditions.rule}` : bad(run) ? '' : KINDS[run.kind] || ''),
      run.problem ? el('div', { class: 'warn ix-sub' }, run.problem) : null,
      !run.link && !bad(run) ? el('div', { class: 'ix-sub' }, 'no report yet') : null);
    const picture = (run) => {
      const drawn = thumb(run.thumbnail, `circuit of ${run.name}`);
      return run.link && drawn ? el('a', { href: run.link, tabindex: -1, 'aria-hidden': 'true' }, drawn) : drawn;
    };
    const text = (key) => (run) => run[key];
    CF.listing(root, [
      { title: '', always: true, value: () => null, cell: picture },
      { title: 'run', value: (r) => [r.name, r.problem, ...Object.values(r.conditions || {})].join(' '), cell: named },
      { title: 'task', choose: true, value: text('task') },
      { title: 'model', choose: true, value: text('model') },
      { title: 'method', choose: true, value: text('method') },
      { title: 'status', choose: true, value: text('status'), cell: (r) => whole(r.status, bad(r) ? 'warn' : null) },
      { title: 'faithfulness', num: true, limit: 'least', value: (r) => r.faithfulness && r.faithfulness.value, cell: faithful },
      { title: 'edges', num: true, limit: 'most', value: text('edges'), cell: (r) => thousands(r.edges) },
      { title: 'certified', choose: true, value: (r) => yes(r.certified) },
      { title: 'backups', num: true, value: text('backups') },
      { title: 'date', value: text('started'), cell: (r) => [whole(r.started.slice(0, 10)), el('div', { class: 'ix-sub' }, [r.started.slice(11, 16), seconds(r.seconds)].filter(Boolean).join(', '))] },
    ], runs, { caption: 'runs' });
  });

  CF.section('sweeps', 'Sweeps', (root, sweeps) => {
    const states = (s) => (s.counts ? Object.entries(s.counts).filter(([, n]) => n).map(([state, n]) => `${n} ${state}`).join(', ') : s.problem);
    CF.listing(root, [
      { title: 'sweep', value: (s) => s.title || s.name, cell: (s) => (s.link ? el('a', { href: s.link }, s.title || s.name) : s.title || s.name) },
      { title: 'file', value: (s) => s.file },
      { title: 'runs', num: true, value: (s) => s.runs },
      { title: 'differ in', value: (s) => s.varied },
      { title: 'state', value: states, cell: (s) => el('span', { class: s.counts ? null : 'warn' }, states(s)) },
    ], sweeps, { caption: 'sweeps' });
  });
})();

/* Two runs beside each other, in charts: scores against scores, both curves, what each head does more or less. */
(() => {
  'use strict';
  const { el, svg, number, signed, interval, percent, count, diverging, tip } = CF;

  document.head.append(el('style', {}, `
    .cc { width: 100%; height: auto; max-width: 620px; display: block; } .cc.wide { max-width: 900px; }
    .cc text { fill: var(--muted); font-size: 12px; } .cc .axis { stroke: var(--line); } .cc .level { stroke: var(--muted); stroke-dasharray: 3 3; }
    .cc .outside { fill: var(--both); opacity: 0.45; } .cc .kept { fill: var(--fg); } .cc .gained { fill: var(--gained); } .cc .lost { fill: var(--lost); }
    .cc .line { fill: none; stroke-width: 2.2; } .cc .dashed { stroke-dasharray: 6 4; } .cc .band { opacity: 0.16; }
    .cc .s0 { stroke: var(--lost); } .cc .s1 { stroke: var(--gained); } .cc .f0 { fill: var(--lost); } .cc .f1 { fill: var(--gained); }
    .cc .own { stroke: var(--fg); stroke-width: 1.5; }
    .cc-heat table { width: auto; border-collapse: separate; border-spacing: 2px; font-size: 0.7rem; }
    .cc-heat th { position: static; border: 0; padding: 0 0.3rem; font-weight: 400; color: var(--muted); text-align: center; background: none; }
    .cc-heat td { border: 1px solid var(--line); border-radius: 2px; padding: 0; min-width: 2rem; height: 2rem; text-align: center; vertical-align: middle; white-space: nowrap; font-variant-numeric: tabular-nums; }
    .cc-heat.narrow td { min-width: 1.1rem; height: 1.1rem; } .cc-heat td.apart { box-shadow: inset 0 0 0 2px var(--fg); }
    .cc-heat tbody tr:hover { background: none; } .cc-heat { overflow-x: auto; padding: 2px; }
    .cc-row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; } .cc-row figure { margin: 0; min-width: 0; max-width: 100%; } .cc-row figcaption { max-width: 24rem; margin-bottom: 0.3rem; }
  `));

  const finite = (x) => x !== null && x !== undefined && Number.isFinite(x);

  CF.section('scatter', 'Scores', (root, data) => {
    const W = 620, H = 520, L = 64, B = 52, T = 12, R = 14;
    const [before, after] = data.units;
    let linear = false;
    const bend = (x) => (linear ? x : Math.sign(x) * Math.sqrt(Math.abs(x)));
    const range = (of) => {
      const values = data.points.map(of), low = Math.min(0, ...values), high = Math.max(0, ...values);
      return low === high ? [low - 1, high + 1] : [low, high];
    };
    let ranges = [range((p) => p[1]), range((p) => p[2])];
    if (data.same_units) {
      const both = [Math.min(ranges[0][0], ranges[1][0]), Math.max(ranges[0][1], ranges[1][1])];
      ranges = [both, both];
    }
    const ticks = ([low, high]) => {
      const most = Math.max(Math.abs(low), Math.abs(high)), power = 10 ** Math.floor(Math.log10(most));
      const sizes = (linear ? [1, 2, 4, 6, 8] : [0.1, 0.5, 1, 2, 5]).map((k) => k * power).filter((v) => v <= most);
      return [0, ...sizes, ...sizes.map((v) => -v)].filter((v) => v >= low - 1e-12 && v <= high + 1e-12);
    };
    const place = el('div', {});
    const draw = () => {
      const scale = ([low, high], from, to) => {
        const a = bend(low), b = bend(high), pad = 0.04 * (b - a);
        return (v) => from + ((to - from) * (bend(v) - a + pad)) / (b - a + 2 * pad);
      };
      const x = scale(ranges[0], L, W - R), y = scale(ranges[1], H - B, T);
      const parts = [];
      for (const v of ticks(ranges[0])) parts.push(svg('line', { class: v ? 'axis' : 'level', x1: x(v), x2: x(v), y1: T, y2: H - B }), svg('text', { x: x(v), y: H - B + 17, 'text-anchor': 'middle' }, CF.short(v)));
      for (const v of ticks(ranges[1])) parts.push(svg('line', { class: v ? 'axis' : 'level', x1: L, x2: W - R, y1: y(v), y2: y(v) }), svg('text', { x: L - 7, y: y(v) + 4, 'text-anchor': 'end' }, CF.short(v)));
      if (data.same_units) {
        const [low, high] = ranges[0];
        parts.push(svg('line', { class: 'level', x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
      }
      const order = { outside: 0, kept: 1, lost: 2, gained: 3 };
      const dots = [...data.points].sort((a, b) => order[a[3]] - order[b[3]]).map((point) => {
        const [name, a, b, fate] = point;
        const dot = svg('circle', { class: fate, cx: x(a).toFixed(1), cy: y(b).toFixed(1), r: fate === 'outside' ? 2.4 : 3.8 });
        dot.point = point;
        return dot;
      });
      const group = svg('g', {}, dots);
      let over = null;
      group.addEventListener('pointerover', (event) => { over = event.target.point || null; });
      tip(group, () => over && `${over[0]}\n${signed(over[1])} → ${signed(over[2])}\n${{ outside: 'in neither circuit', kept: 'in both circuits', lost: 'lost', gained: 'gained' }[over[3]]}`);
      parts.push(group, svg('text', { x: (L + W - R) / 2, y: H - 10, 'text-anchor': 'middle' }, `before, ${before}`),
        svg('text', { x: 14, y: (T + H - B) / 2, 'text-anchor': 'middle', transform: `rotate(-90 14 ${(T + H - B) / 2})` }, `after, ${after}`));
      place.replaceChildren(svg('svg', { class: 'cc', viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `scores of ${count(data.common, data.level)}s, before against after` }, parts));
    };
    const tops = data.overlap.map(({ k, share }) => `${Math.round(k * share)} of the ${k} strongest`).join(', ');
    root.append(
      el('p', { id: 'agreement' }, `${count(data.common, data.level)} scored by both. Pearson ${number(data.pearson, 3)}, Spearman ${number(data.spearman_signed, 3)}; of sizes without sign, Spearman ${number(data.spearman, 3)}.${tops ? ` In common: ${tops}.` : ''}`),
      data.points.length < data.common ? el('p', { class: 'muted' }, `${count(data.points.length, 'point')} are drawn: those of either circuit, then the strongest; the correlations are of all.`) : '',
      el('div', { class: 'bar' },
        el('label', {}, el('input', { type: 'checkbox', id: 'linear', onchange: (event) => { linear = event.target.checked; draw(); } }), ' linear axes'),
        el('span', { class: 'muted' }, data.same_units ? 'Otherwise square roots, so that weak ones come apart. On the diagonal: equal.' : 'Otherwise square roots. The units differ: compare ranks, not sizes.'),
        [['gained', 'gained'], ['lost', 'lost'], ['kept', 'in both']].map(([fate, words]) => el('span', { class: `fate-${fate}` }, `● ${words}`))),
      place);
    draw();
  });

  CF.section('curves', 'Curves', (root, sides) => {
    const W = 900, H = 360, L = 52, R = 16, T = 14, B = 46;
    const total = sides.map((side) => side.edges), shares = total[0] !== total[1];
    const at = (n, i) => (shares ? n / total[i] : n);
    const points = sides.map((side, i) => side.points.filter((p) => p.edges > 0 && p.faithfulness).map((p) => ({ ...p, x: at(p.edges, i) })));
    const own = sides.map((side, i) => side.circuit && side.circuit.edges > 0 && { ...side.circuit, x: at(side.circuit.edges, i) });
    const all = [...points.flat(), ...own.filter(Boolean)];
    const least = Math.min(...all.map((p) => p.x)), most = Math.max(...all.map((p) => p.x), least * 1.01);
    const values = [0, 1, ...all.flatMap((p) => [p.faithfulness.value, p.faithfulness.low, p.faithfulness.high]).filter(finite)];
    const low = Math.min(...values) - 0.03, high = Math.max(...values) + 0.03;
    const x = (v) => L + 8 + ((W - L - R - 16) * Math.log(v / least)) / Math.log(most / least);
    const y = (v) => T + ((H - T - B) * (high - v)) / (high - low);
    const parts = [];
    const step = high - low > 4 ? 1 : high - low > 1.6 ? 0.5 : 0.2;
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) parts.push(svg('line', { class: Math.abs(v) < 1e-9 || Math.abs(v - 1) < 1e-9 ? 'level' : 'axis', x1: L, x2: W - R, y1: y(v), y2: y(v) }), svg('text', { x: L - 7, y: y(v) + 4, 'text-anchor': 'end' }, number(v, 1)));
    for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) {
      const v = 10 ** power;
      if (v >= least * 0.999) parts.push(svg('line', { class: 'axis', x1: x(v), x2: x(v), y1: T, y2: H - B }), svg('text', { x: x(v), y: H - B + 17, 'text-anchor': 'middle' }, shares ? percent(v, 2) : v.toLocaleString('en')));
    }
    parts.push(svg('text', { x: (L + W - R) / 2, y: H - 8, 'text-anchor': 'middle' }, shares ? 'share of all edges kept' : 'edges kept'));
    points.forEach((row, i) => {
      const mark = (p) => `${x(p.x).toFixed(1)},${y(p.faithfulness.value).toFixed(1)}`;
      const ends = row.filter((p) => finite(p.faithfulness.low) && finite(p.faithfulness.high));
      const up = ends.map((p) => `${x(p.x).toFixed(1)},${y(p.faithfulness.high).toFixed(1)}`), down = ends.map((p) => `${x(p.x).toFixed(1)},${y(p.faithfulness.low).toFixed(1)}`).reverse();
      if (ends.length) parts.push(svg('path', { class: `band f${i}`, d: `M${[...up, ...down].join('L')}Z` }));
      if (row.length) parts.push(svg('path', { class: `line s${i}${i ? '' : ' dashed'}`, d: `M${row.map(mark).join('L')}` }));
    });
    points.forEach((row, i) => {
      for (const p of row) {
        const dot = svg('circle', { class: `f${i}`, cx: x(p.x), cy: y(p.faithfulness.value), r: 3.4 });
        tip(dot, () => `${i ? 'after' : 'before'}: ${count(p.edges, 'edge')} (${percent(p.edges / total[i], 2)})\nfaithfulness ${interval(p.faithfulness)}`);
        parts.push(dot);
      }
      const mine = own[i];
      if (mine) {
        const [cx, cy] = [x(mine.x), y(mine.faithfulness.value)];
        const diamond = svg('path', { class: `own f${i}`, d: `M${cx},${cy - 8}L${cx + 7},${cy}L${cx},${cy + 8}L${cx - 7},${cy}Z`, tabindex: 0, role: 'img', 'aria-label': `own circuit ${i ? 'after' : 'before'}` });
        tip(diamond, () => `${i ? 'after' : 'before'}, the run's own circuit: ${count(mine.edges, 'edge')}\nfaithfulness ${interval(mine.faithfulness)}`);
        parts.push(diamond);
      }
    });
    const ablations = sides.map((side) => side.ablation);
    root.append(el('p', {}, 'Circuits of the strongest edges by |score| with 95 % intervals; diamonds are the circuits of the runs. ', `Measured on ${[...new Set(sides.map((side) => side.n_prompts))].join(' and on ')} prompts. `, ablations[0] === ablations[1] ? `Under ${ablations[0]} ablation.` : el('strong', { class: 'warn' }, `Before under ${ablations[0]} ablation, after under ${ablations[1]}: not the same measure.`)),
      el('div', { class: 'bar' }, el('span', { class: 'fate-lost' }, '- - before'), el('span', { class: 'fate-gained' }, '— after')),
      svg('svg', { class: 'cc wide', viewBox: `0 0 ${W} ${H}`, role: 'group', 'aria-label': 'faithfulness by the number of edges, before and after' }, parts));
  });

  CF.section('difference', 'Effects', (root, data) => {
    const columns = [...Array(data.heads).keys(), ...(data.mlps ? ['m'] : [])], narrow = columns.length > 14;
    const of = (cell) => cell.after[0] - cell.before[0];
    const ends = ([, low, high]) => (low === null && high === null ? '' : ` [${low === null ? '−∞' : number(low, 2)}, ${high === null ? '∞' : number(high, 2)}]`);
    const apart = ({ before: [, a, b], after: [, c, d] }) => (finite(b) && finite(c) && c > b) || (finite(a) && finite(d) && d < a);
    const panel = ({ title, meaning, cells }) => {
      const at = new Map(cells.map((cell) => [`${cell.layer}.${cell.column ?? 'm'}`, cell]));
      const max = Math.max(...cells.map((cell) => Math.abs(of(cell))));
      const box = (layer, column) => {
        const cell = at.get(`${layer}.${column}`);
        if (!cell) return el('td', {});
        const told = `${cell.node}: ${signed(of(cell), 3)} ${data.metric}\nbefore ${signed(cell.before[0], 3)}${ends(cell.before)}\nafter ${signed(cell.after[0], 3)}${ends(cell.after)}`;
        const share = max ? Math.abs(of(cell)) / max : 0;
        const made = el('td', {
          tabindex: 0, class: apart(cell) ? 'apart' : null, 'data-node': cell.node, 'aria-label': told.replaceAll('\n', '; '),
          style: { background: diverging(of(cell), max), color: share > 0.75 ? 'var(--card)' : 'var(--fg)' },
        }, !narrow && share >= 0.02 ? signed(of(cell), Math.abs(of(cell)) >= 9.95 ? 0 : 1) : '');
        return tip(made, () => told);
      };
      return el('figure', {}, el('figcaption', {}, el('strong', {}, title), ', after less before', el('div', { class: 'muted' }, meaning)),
        el('div', { class: narrow ? 'cc-heat narrow' : 'cc-heat' }, el('table', {},
          el('thead', {}, el('tr', {}, el('th', {}), columns.map((c) => el('th', { scope: 'col' }, c === 'm' ? 'MLP' : !narrow ? `h${c}` : c % 4 ? '' : c)))),
          el('tbody', {}, [...Array(data.layers).keys()].map((layer) => el('tr', {}, el('th', { scope: 'row' }, `layer ${layer}`), columns.map((c) => box(layer, c))))))),
        el('p', { class: 'muted' }, max ? `Scale −${number(max, 2)} to ${number(max, 2)} ${data.metric}.` : 'No difference: the same in both.'));
    };
    const marked = data.panels.some(({ cells }) => cells.some(apart));
    root.append(el('p', {}, 'What each head and MLP does more after (blue) or less (orange). ', marked ? 'Framed: the two 95 % intervals do not overlap.' : '', ' Parts of a name are compared; in models that were trained apart they need not do the same.'),
      el('div', { class: 'cc-row' }, data.panels.map(panel)));
  });
})();

/* Faithfulness and completeness over the number of edges kept, on a logarithmic axis, with what chance does. */
(() => {
  'use strict';
  const { el, svg, number, interval, percent, tip, count } = CF;

  document.head.append(el('style', {}, `
    .cv { width: 100%; height: auto; max-width: 1000px; display: block; }
    .cv text { fill: var(--muted); font-size: 12px; }
    .cv .axis { stroke: var(--line); } .cv .level { stroke: var(--muted); stroke-dasharray: 3 3; }
    .cv .share { stroke: var(--line); stroke-dasharray: 1 3; }
    .cv .faith { stroke: var(--pos); fill: none; stroke-width: 2.2; } .cv .faith-band { fill: var(--pos); opacity: 0.2; }
    .cv .compl { stroke: var(--neg); fill: none; stroke-width: 2.2; stroke-dasharray: 7 3; } .cv .compl-band { fill: var(--neg); opacity: 0.16; }
    .cv .chance { fill: var(--muted); opacity: 0.22; } .cv .chance-line { stroke: var(--muted); fill: none; stroke-width: 1.4; }
    .cv .dot-f { fill: var(--pos); } .cv .dot-c { fill: var(--neg); }
    .cv .mine { stroke: var(--fg); stroke-width: 2; } .cv .mine-f { fill: var(--pos); stroke: var(--fg); stroke-width: 1.5; }
    .cv .mine-c { fill: var(--neg); stroke: var(--fg); stroke-width: 1.5; }
    .cv .hit { fill: transparent; cursor: crosshair; } .cv .hit:focus { outline: none; }
    .cv .hit:hover + .guide, .cv .hit:focus-visible + .guide { visibility: visible; }
    .cv .guide { stroke: var(--accent); stroke-width: 1.5; visibility: hidden; pointer-events: none; }
    .cv-key { display: inline-block; width: 1.6rem; height: 0; border-top: 3px solid; vertical-align: 0.25rem; }
    .cv-key.area { height: 0.7rem; border: 0; vertical-align: -0.05rem; background: var(--muted); opacity: 0.35; }
    .cv-key.mark { width: 0.75rem; height: 0.75rem; border: 2px solid var(--fg); background: var(--pos); transform: rotate(45deg); vertical-align: -0.05rem; margin: 0 0.3rem; }
  `));

  const H = 380, L = 56, R = 96, T = 34, B = 48;
  const usable = (x) => x !== null && x !== undefined && Number.isFinite(x);

  /* Ticks at 1, 2 or 5 times a power of ten. */
  const ticks = (low, high) => {
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(i * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  };
  const TEXT = { faithfulness: 'faithfulness', completeness: 'without the circuit (0 is complete)' };

  const told = (point, data) => [
    point.asked === undefined ? `${count(point.edges, 'edge')} (${percent(point.edges / data.edges, 2)} of all)`
      : `the ${count(point.asked, 'strongest edge')} (${percent(point.asked / data.edges, 2)} of all), ${point.asked === point.edges ? 'all' : point.edges.toLocaleString('en')} connected`,
    `faithfulness ${interval(point.faithfulness)}`,
    point.completeness ? `completeness ${interval(point.completeness)}` : null,
    point.random ? `random: mean ${number(point.random.mean)}, 95 % ${number(point.random.low)} to ${number(point.random.high)}` : null,
  ].filter(Boolean).join('\n');

  const chart = (data, W) => {
    const { points } = data;
    const mine = data.circuit;
    const all = [0, 1];
    const take = (found) => found && all.push(...['value', 'low', 'high', 'mean'].map((k) => found[k]).filter(usable));
    points.forEach((p) => [p.faithfulness, p.completeness, p.random].forEach(take));
    if (mine) [mine.faithfulness, mine.completeness].forEach(take);
    const span = Math.max(...all) - Math.min(...all);
    const low = Math.min(...all) - 0.04 * span, high = Math.max(...all) + 0.06 * span;
    const least = points[0].asked, left = L + 10;
    const width = Math.log(Math.max(data.edges, least + 1) / least);
    const x = (n) => left + ((W - R - 10 - left) * Math.log(Math.max(n, least) / least)) / width;
    const y = (v) => T + ((H - T - B) * (high - v)) / (high - low);
    const parts = [];

    const levels = ticks(low, high);
    for (const v of levels.found) {
      parts.push(svg('line', { class: 'axis', x1: L, x2: W - R, y1: y(v), y2: y(v) }),
        svg('text', { x: L - 8, y: y(v) + 4, 'text-anchor': 'end' }, number(v, levels.digits)));
    }
    for (const v of [0, 1]) parts.push(svg('line', { class: 'level', x1: L, x2: W - R, y1: y(v), y2: y(v) }));
    parts.push(svg('text', { x: W - R + 6, y: y(1) + 4 }, 'full model'), svg('text', { x: W - R + 6, y: y(0) + 4 }, 'empty circuit'));
    for (let power = 1; power <= data.edges; power *= 10) {
      for (const times of [1, 2, 5]) {
        const n = power * times;
        if (n < least || n > data.edges) continue;
        parts.push(svg('line', { class: 'axis', x1: x(n), x2: x(n), y1: H - B, y2: H - B + (times === 1 ? 6 : 3) }));
        if (times === 1 || width < Math.log(300)) parts.push(svg('text', { x: x(n), y: H - B + 19, 'text-anchor': 'middle' }, n.toLocaleString('en')));
      }
    }
    let before = -Infinity;
    for (const { share, edges } of data.shares) {
      if (edges < least) continue;
      parts.push(svg('line', { class: 'share', x1: x(edges), x2: x(edges), y1: T, y2: H - B }));
      if (x(edges) - before > 34) {
        parts.push(svg('text', { x: x(edges), y: T - 8, 'text-anchor': 'middle' }, `${Number((100 * share).toPrecision(3))} %`));
        before = x(edges);
      }
    }
    parts.push(svg('text', { x: (L + W - R) / 2, y: H - 8, 'text-anchor': 'middle' }, 'edges kept, the strongest first (above: share of all edges)'));

    const line = (of) => points.filter((p) => usable(of(p))).map((p, i) => `${i ? 'L' : 'M'}${x(p.asked).toFixed(1)} ${y(of(p)).toFixed(1)}`).join('');
    const band = (of) => {
      const ends = points.filter((p) => of(p) && usable(of(p).low) && usable(of(p).high));
      if (!ends.length) return '';
      const up = ends.map((p) => `${x(p.asked).toFixed(1)} ${y(of(p).high).toFixed(1)}`);
      const down = ends.map((p) => `${x(p.asked).toFixed(1)} ${y(of(p).low).toFixed(1)}`).reverse();
      return `M${[...up, ...down].join('L')}Z`;
    };
    if (data.random) parts.push(svg('path', { class: 'chance', d: band((p) => p.random) }), svg('path', { class: 'chance-line', d: line((p) => p.random?.mean) }));
    const series = [['completeness', 'compl', 'dot-c'], ['faithfulness', 'faith', 'dot-f']];
    for (const [key, name, dot] of series) {
      parts.push(svg('path', { class: `${name}-band`, d: band((p) => p[key]) }), svg('path', { class: name, d: line((p) => p[key]?.value) }));
      for (const p of points) if (usable(p[key]?.value)) parts.push(svg('circle', { class: dot, cx: x(p.asked), cy: y(p[key].value), r: 3 }));
    }
    const marks = [];
    const guide = (at, label, shown) => {
      const hit = svg('rect', { class: 'hit', tabindex: -1, role: 'img', 'aria-label': label.replaceAll('\n', '; '), ...shown });
      tip(hit, () => label);
      marks.push(svg('g', {}, hit, svg('line', { class: 'guide', x1: at, x2: at, y1: T, y2: H - B })));
      return hit;
    };
    points.forEach((p, i) => {
      const from = i ? (x(points[i - 1].asked) + x(p.asked)) / 2 : L;
      const to = i < points.length - 1 ? (x(points[i + 1].asked) + x(p.asked)) / 2 : W - R;
      guide(x(p.asked), told(p, data), { x: from, y: T, width: Math.max(1, to - from), height: H - T - B, 'data-asked': p.asked });
    });
    if (mine) {
      const here = x(mine.edges), label = `the circuit of this run\n${told(mine, data)}`;
      for (const [key, name] of [['completeness', 'mine-c'], ['faithfulness', 'mine-f']]) {
        const found = mine[key];
        if (!usable(found?.value)) continue;
        const v = y(found.value);
        if (usable(found.low) && usable(found.high)) parts.push(svg('line', { class: 'mine', x1: here, x2: here, y1: y(found.low), y2: y(found.high) }));
        parts.push(svg('path', { class: name, d: `M${here} ${v - 7}l7 7l-7 7l-7 -7z` }));
        guide(here, label, { x: here - 9, y: v - 9, width: 18, height: 18, 'data-circuit': key });
      }
    }
    const drawing = svg('svg', { class: 'cv', viewBox: `0 0 ${W} ${H}`, role: 'group', 'aria-label': 'Faithfulness and completeness over edges kept; arrow keys move along the curve.' }, parts, marks);
    const hits = [...drawing.querySelectorAll('.hit')].sort((a, b) => Number(a.dataset.asked ?? mine.edges) - Number(b.dataset.asked ?? mine.edges));
    if (hits[0]) hits[0].setAttribute('tabindex', 0);
    drawing.addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1 }[event.key];
      const next = event.key === 'Home' ? 0 : event.key === 'End' ? hits.length - 1 : hits.indexOf(event.target) + step;
      if (!hits[next]) return;
      event.preventDefault();
      hits.forEach((hit) => hit.setAttribute('tabindex', hit === hits[next] ? 0 : -1));
      hits[next].focus();
    });
    return drawing;
  };

  const key = (style, name, words) => el('span', {}, el('i', { class: `cv-key ${name}`, style, 'aria-hidden': 'true' }), ` ${words}`);

  const table = (data) => el('details', {}, el('summary', {}, 'The same as a table'),
    el('div', { class: 'scroll' }, el('table', {},
      el('thead', {}, el('tr', {}, ['strongest edges', 'of them connected', 'share of all', 'faithfulness', TEXT.completeness, 'random, mean [95 %]'].map((t) => el('th', { class: 'num', scope: 'col' }, t)))),
      el('tbody', {}, [...data.points, ...(data.circuit ? [{ ...data.circuit, mine: true }] : [])].map((p) => el('tr', {},
        [p.mine ? 'this circuit' : p.asked.toLocaleString('en'), p.edges.toLocaleString('en'), percent((p.asked ?? p.edges) / data.edges, 2),
          interval(p.faithfulness), p.completeness ? interval(p.completeness) : '–',
          p.random ? `${number(p.random.mean)} [${number(p.random.low)}, ${number(p.random.high)}]` : '–']
          .map((t) => el('td', { class: 'num' }, t))))))));

  CF.section('curve', 'Faithfulness and completeness by size', (root, data) => {
    const what = { rankings: 'random rankings', circuits: 'random connected circuits of the same size' };
    const place = el('div', {});
    let drawn = 0;
    const draw = () => {
      const width = Math.round(Math.max(460, Math.min(1000, root.clientWidth || 900)));
      if (width === drawn || place.contains(document.activeElement)) return;
      drawn = width;
      place.replaceChildren(chart(data, width));
    };
    addEventListener('resize', draw);
    root.append(
      el('p', {}, 'Circuits of the strongest edges by |score|, as far as they are connected from the input to the logits. ',
        el('strong', {}, 'Faithfulness'), ': how much of the behaviour they carry (1 is the full model). ',
        el('strong', {}, 'Completeness'), ': how much is left of it without them (0 is complete). ',
        `Ratios of means over ${count(data.n_prompts, 'prompt')} under ${data.ablation} ablation, with 95 % intervals`,
        data.random && data.random.n_prompts !== data.n_prompts ? ` (random ones: over ${count(data.random.n_prompts, 'prompt')}).` : '.', CF.besides(data.n_prompts)),
      el('div', { class: 'bar' }, key({ 'border-color': 'var(--pos)' }, '', 'faithfulness'),
        key({ 'border-color': 'var(--neg)', 'border-top-style': 'dashed' }, '', TEXT.completeness),
        data.random ? key({}, 'area', `faithfulness of ${data.random.count} ${what[data.random.of] || data.random.of}, mean and 95 %`) : null,
        data.circuit ? key({}, 'mark', `this run's circuit, ${count(data.circuit.edges, 'edge')}`) : null),
      place, ...(data.missing ? [el('p', { class: 'muted' }, `No random circuits: ${data.missing}.`)] : []), table(data));
    draw();
  });
})();

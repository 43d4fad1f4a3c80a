/* Effects of heads and MLPs: one grid of layers by heads for each kind of effect, in one scale or each in its own. */
(() => {
  'use strict';
  const { el, number, diverging, tip } = CF;

  document.head.append(el('style', {}, `
    .hm { display: flex; flex-wrap: wrap; gap: 1rem 0.9rem; }
    .hm figure { margin: 0; min-width: 0; max-width: 100%; }
    .hm figcaption { margin-bottom: 0.3rem; max-width: 20rem; }
    .hm figure > p { max-width: 20rem; }
    .hm-others { max-height: 11rem; overflow: auto; max-width: 20rem; }
    .hm .hm-others table { border-spacing: 0; font-size: 0.8rem; line-height: 1.3; } .hm .hm-others td { border: 0; min-width: 0; height: auto; padding: 0.05rem 0.6rem 0.05rem 0; cursor: default; text-align: right; }
    .hm .hm-others td:first-child { text-align: left; }
    .hm-others button { max-width: 10rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; vertical-align: bottom; }
    .hm .fit { overflow-x: auto; padding: 3px; }
    .hm table { width: auto; border-collapse: separate; border-spacing: 2px; font-size: 0.7rem; line-height: 1; }
    .hm th { position: static; border: 0; padding: 0 0.3rem; font-weight: 400; color: var(--muted); text-align: center; background: none; }
    .hm thead th { max-width: var(--cell); padding: 0 0 0.25rem; white-space: nowrap; overflow-wrap: normal; }
    .hm td[role] { font-size: 0.64rem; letter-spacing: -0.02em; }
    .hm table.dense { border-spacing: 1px; margin-right: 12px; }
    .hm tbody th { padding: 0 0.2rem 0 0; text-align: right; vertical-align: middle; white-space: nowrap; }
    .hm tbody tr:hover { background: none; }
    .hm td { border: 1px solid var(--line); border-radius: 2px; padding: 0; min-width: var(--cell); height: var(--cell); text-align: center;
      vertical-align: middle; cursor: pointer; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
    .hm td.gap { border: 0; min-width: 4px; height: 0; cursor: default; }
    .hm td.none { border: 1px dashed var(--line); cursor: default; }
    .hm td.inside { box-shadow: inset 0 0 0 2px var(--fg); }
    .hm td.selected { outline: 3px solid var(--accent); outline-offset: 0; }
    .hm-scale { display: flex; align-items: center; gap: 0.5rem; font-size: 0.8rem; margin-top: 0.3rem; }
    .hm-scale i { display: block; width: 9rem; height: 0.7rem; border: 1px solid var(--line); border-radius: 2px; }
    .hm-key { display: inline-block; width: 0.9rem; height: 0.9rem; border: 1px solid var(--line); box-shadow: inset 0 0 0 2px var(--fg);
      border-radius: 2px; vertical-align: -0.1rem; }
  `));

  /* With its sign, but for what rounds to zero. */
  const signed = (x, at) => (Math.abs(x) < 0.5 * 10 ** -at ? number(0, at) : CF.signed(x, at));
  const digits = (x) => (Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2);
/* Short, so that it fits: +.72, +3.4, +12; nothing where that would be zero. */
  const inCell = (x, max) => {
    const at = Math.abs(x) >= 9.95 ? 0 : max < 0.995 ? 2 : 1;
    return max < 0.095 || Math.abs(x) < 0.5 * 10 ** -at ? '' : signed(x, at).replace(/^([+−])0\./, '$1.');
  };
  const ends = (row, at) => `${row.low === null ? '−∞' : number(row.low, at)}, ${row.high === null ? '∞' : number(row.high, at)}`;
  const words = (cell, panel, data) => {
    const at = Math.max(2, digits(cell.value) + 1);
    const sure = (cell.low !== null && cell.low > 0) || (cell.high !== null && cell.high < 0);
    return [
      `${cell.node}: ${signed(cell.value, at)} ${panel.metric}`,
      `95 % interval [${ends(cell, at)}]${sure ? '' : ', which holds zero'}`,
      `${panel.title}${panel.name === 'direct' ? '' : `, ${data.ablation} ablation`}${data.inside.has(cell.node) ? '; in the circuit' : ''}`,
    ].join('\n');
  };

  const grid = (panel, data, max) => {
    const at = new Map(panel.cells.map((cell) => [`${cell.layer}.${cell.column ?? 'm'}`, cell]));
    const columns = [...Array(data.heads).keys(), ...(data.mlps ? ['m'] : [])];
    const wide = columns.length <= 14;
    const places = []; // [row][column] of what can be focused
    const cellOf = (layer, column) => {
      const cell = at.get(`${layer}.${column}`);
      if (!cell || cell.value === null) return el('td', { class: 'none', 'aria-label': 'not measured' });
      const share = max > 0 ? Math.abs(cell.value) / max : 0;
      const box = el('td', {
        role: 'gridcell', tabindex: -1, 'data-node': cell.node, class: data.inside.has(cell.node) ? 'inside' : null,
        'aria-label': words(cell, panel, data).replaceAll('\n', '; '),
        style: { background: diverging(cell.value, max), color: share > 0.75 ? 'var(--card)' : 'var(--fg)' },
      }, wide && share >= 0.02 ? inCell(cell.value, max) : '');
      tip(box, () => words(cell, panel, data));
      box.addEventListener('click', () => CF.select(CF.selected === cell.node ? null : cell.node));
      return box;
    };
    const body = [...Array(data.layers).keys()].map((layer) => {
      const row = columns.map((column) => cellOf(layer, column));
      places.push(row);
      const shown = data.mlps && data.heads ? [...row.slice(0, -1), el('td', { class: 'gap', 'aria-hidden': 'true' }), row.at(-1)] : row;
      return el('tr', { role: 'row' }, el('th', { scope: 'row', role: 'rowheader' }, `layer ${layer}`), shown);
    });
    const heads = columns.map((c) => el('th', { scope: 'col', role: 'columnheader' }, c === 'm' ? 'MLP' : wide || c % 4 === 0 ? (wide ? `h${c}` : c) : ''));
    if (data.mlps && data.heads) heads.splice(-1, 0, el('td', { class: 'gap', 'aria-hidden': 'true' }));
    const table = el('table', {
      role: 'grid', class: columns.length > 24 ? 'dense' : null, 'aria-label': `${panel.title}: ${panel.meaning}. Arrow keys move, Enter selects.`,
      style: { '--cell': wide ? '1.75rem' : columns.length <= 24 ? '1.35rem' : '0.85rem' },
    }, el('thead', {}, el('tr', { role: 'row' }, el('td', { class: 'gap', 'aria-hidden': 'true' }), heads)), el('tbody', {}, body));

    const first = places.flat().find((box) => box.dataset.node);
    if (first) first.tabIndex = 0;
    const where = (box) => {
      const row = places.findIndex((boxes) => boxes.includes(box));
      return [row, row < 0 ? -1 : places[row].indexOf(box)];
    };
    const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    table.addEventListener('keydown', (event) => {
      let [row, column] = where(event.target);
      if (row < 0) return;
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        event.target.click();
        return;
      }
      const step = STEPS[event.key];
      if (step) {
        do {
          row += step[0];
          column += step[1];
        } while (places[row]?.[column] && !places[row][column].dataset.node);
      } else if (event.key === 'Home') column = places[row].findIndex((box) => box.dataset.node);
      else if (event.key === 'End') column = places[row].findLastIndex((box) => box.dataset.node);
      else return;
      event.preventDefault();
      places[row]?.[column]?.focus();
    });
    table.addEventListener('focusin', (event) => {
      if (where(event.target)[0] < 0) return;
      table.querySelectorAll('td[tabindex="0"]').forEach((box) => (box.tabIndex = -1));
      event.target.tabIndex = 0;
    });
    return table;
  };

  const scale = (max, metric) => el('div', { class: 'hm-scale' },
    el('span', {}, signed(-max, digits(max))),
    el('i', { style: { background: `linear-gradient(to right in oklab, ${diverging(-1, 1)}, var(--card), ${diverging(1, 1)})` } }),
    el('span', {}, signed(max, digits(max))),
    el('span', { class: 'muted' }, metric));

  /* Writers that have no place in the grid, the strongest first. */
  const others = (panel) => [
    panel.others.length === 0 ? null : [el('div', { class: 'muted', style: { 'font-size': '0.85rem', 'margin-top': '0.5rem' } }, 'Outside the grid:'), el('div', { class: 'hm-others', tabindex: panel.others.length > 6 ? 0 : null, role: 'group', 'aria-label': `${panel.title} outside the grid` },
      el('table', {}, el('tbody', {}, panel.others.map((row) => el('tr', {},
        el('td', {}, el('button', { type: 'button', class: 'small mono', title: row.node, 'data-node': row.node, onclick: () => CF.select(row.node) }, row.node)),
        el('td', { class: 'num' }, signed(row.value, digits(row.value))), el('td', { class: 'num muted' }, `[${ends(row, digits(row.value))}]`))))))],
    panel.rest === null ? null : el('p', { class: 'muted' }, `What biases write, and what is not linear: ${signed(panel.rest, digits(panel.rest))} ${panel.metric}.`),
  ];

  CF.section('heatmap', 'Effect of each head and MLP', (root, given) => {
    const data = { ...given, inside: new Set(given.circuit) };
    /* Values in different units are never on one scale. */
    const most = (metric) => Math.max(...data.panels.filter((panel) => panel.metric === metric).map((panel) => panel.max));
    let together = true;
    const place = el('div', { class: 'hm' });
    const draw = () => place.replaceChildren(...data.panels.map((panel) => {
      const max = together ? most(panel.metric) : panel.max;
      return el('figure', { 'data-panel': panel.name },
        el('figcaption', {}, el('strong', {}, panel.title), el('div', { class: 'muted', style: { 'font-size': '0.85rem' } }, panel.meaning)),
        el('div', { class: 'fit' }, grid(panel, data, max)), scale(max, panel.metric), others(panel));
    }));
    const box = el('input', { type: 'checkbox', checked: true, onchange: (event) => { together = event.target.checked; draw(); mark(CF.selected); } });
    const full = `The full model's ${data.metric} is ${number(data.full, 2)}${data.empty === null ? '' : `, the empty circuit's ${number(data.empty, 2)} (${data.ablation} ablation)`}.`;
    root.append(
      el('p', {}, `Means over ${CF.count(data.n_prompts, 'prompt')}. `, full, CF.besides(data.n_prompts)),
      el('div', { class: 'bar' }, el('span', {}, el('span', { class: 'hm-key', 'aria-hidden': 'true' }), ' in the circuit'),
        data.panels.length > 1 ? el('label', {}, box, new Set(data.panels.map((panel) => panel.metric)).size > 1 ? ' one scale for each unit' : ' one scale for all') : null,
        el('span', { class: 'muted' }, 'Click a cell, or move with the arrow keys and press Enter, to select it in the graph.')),
      place,
      ...Object.entries(data.missing).map(([title, why]) => el('p', { class: 'muted' }, `${title}: ${why}.`)));
    const mark = (name) => place.querySelectorAll('td[data-node]').forEach((cell) => {
      cell.classList.toggle('selected', cell.dataset.node === name);
      cell.setAttribute('aria-selected', String(cell.dataset.node === name));
    });
    draw();
    CF.on('select', mark);
  });
})();

/* Attention of the circuit's heads: what each looks at from the answer's position, and the whole pattern of one. */
(() => {
  'use strict';
  const { el, svg, number, percent, tip } = CF;

  document.head.append(el('style', {}, `
    .at-strip { overflow-x: auto; max-height: 26rem; }
    .at-strip table { width: auto; border-collapse: separate; border-spacing: 1px; font-size: 0.78rem; }
    .at-strip th { position: static; border: 0; padding: 0 0.5rem 0 0; }
    .at-strip th.token { font-weight: 400; font-family: var(--mono); padding: 0 0.25rem; max-width: 7rem; overflow: hidden; text-overflow: ellipsis; white-space: pre; }
    .at-strip.many th.token { font-size: 0.72rem; writing-mode: vertical-rl; transform: rotate(180deg); padding: 0.25rem 0; max-height: 7rem; max-width: none; text-align: left; vertical-align: top; }
    .at-strip td { border: 1px solid var(--line); border-radius: 2px; padding: 0 0.25rem; text-align: center; min-width: 1.15rem; height: 1.45rem; font-variant-numeric: tabular-nums; }
    .at-strip.many td { padding: 0; min-width: 0.95rem; }
    .at-strip tbody tr:hover { background: none; }
    .at-strip tr.chosen th { color: var(--accent); font-weight: 600; }
    .at-strip th button { all: unset; cursor: pointer; font-family: var(--mono); }
    .at-strip th button:hover { text-decoration: underline; }
    .at-strip th button:focus-visible { outline: 2px solid var(--accent); }
    .at-fit { overflow: auto; max-height: 48rem; }
    .at text { font-family: var(--mono); fill: var(--muted); white-space: pre; }
    .at text.on { fill: var(--fg); font-weight: 700; }
    .at .cell { stroke: var(--line); stroke-width: 0.5; } .at .cursor { fill: none; stroke: var(--accent); stroke-width: 2.5; pointer-events: none; }
    .at-told { min-height: 1.6rem; }
    #patterns .bar label { max-width: 100%; }
  `));

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  /* Blanks and line ends are to be seen: they tell tokens apart. */
  const seen = (token) => (token === '' ? '∅' : token.replace(/ /g, '\u00b7').replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, '\ufffd'));
  const cut = (token, most) => { const all = [...seen(token)]; return all.length > most ? all.slice(0, most - 1).join('') + '…' : all.join(''); };
  const shade = (weight) => `color-mix(in oklab, var(--pos) ${(100 * weight).toFixed(1)}%, var(--card))`;

  CF.section('patterns', 'Attention patterns', (root, data) => {
    const state = { head: 0, prompt: 0, row: null, column: 0 };
    const cache = new Map();
    const weights = (head, prompt) => {
      const at = `${head}.${prompt}`;
      if (!cache.has(at)) cache.set(at, bytes(data.heads[head].data[prompt]));
      return cache.get(at);
    };
    const weight = (head, to, from) => weights(head, state.prompt)[to * tokens().length + from] / 255;
    const tokens = () => data.prompts[state.prompt].tokens;
    const answer = () => /* patterns end there */ tokens().length - 1;
    const named = (head) => head.name + (head.role ? ` (${head.role})` : '');

    const strip = el('div', { class: 'at-strip', tabindex: 0, role: 'group', 'aria-label': 'attention from the answer position' });
    const place = el('div', { class: 'at-fit', tabindex: -1 });
    const told = el('p', { class: 'at-told', 'aria-live': 'polite' });
    const heads = el('select', { 'aria-label': 'head', onchange: (event) => choose(Number(event.target.value)) },
      data.heads.map((head, i) => el('option', { value: i }, named(head))));
    const prompts = el('select', { 'aria-label': 'prompt', style: { 'max-width': '100%' }, onchange: (event) => { state.prompt = Number(event.target.value); state.row = null; draw(); } },
      data.prompts.map((p, i) => el('option', { value: i }, `pair ${p.pair}, ${p.side}${p.why ? ` (${p.why})` : ''}: ${cut(p.tokens.join(p.tokens.slice(1).some((t) => /^\s/.test(t)) ? '' : ' '), 70).replaceAll('\u00b7', ' ')}`)));

    const choose = (head, { tell = true } = {}) => {
      state.head = head;
      heads.value = String(head);
      draw();
      if (tell) CF.select(data.heads[head].name);
    };

    const drawStrip = () => {
      const shown = tokens(), many = shown.length > 22;
      strip.classList.toggle('many', many);
      strip.replaceChildren(el('table', {},
        el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'head'),
          shown.map((t, i) => el('th', { scope: 'col', class: 'token', title: `${seen(t)} (${i})` }, cut(t, 14))))),
        el('tbody', {}, data.heads.map((head, h) => el('tr', { class: h === state.head ? 'chosen' : null, 'data-head': head.name },
          el('th', { scope: 'row' }, el('button', { type: 'button', 'aria-pressed': String(h === state.head), onclick: () => choose(h) }, head.name)),
          shown.map((t, from) => {
            const w = weight(h, answer(), from);
            return tip(el('td', { style: { background: shade(w), color: w > 0.75 ? 'var(--card)' : 'var(--fg)' } }, w >= 0.1 && !many ? number(w, 2) : ''),
              () => `${named(head)} looks from the answer position at ${seen(t)} (${from}): ${number(w, 3)}`);
          }))))));
    };

    let cursor = null, xs = [], ys = [], size = 0, cells = null;
    const tell = (to, from) => {
      const shown = tokens();
      state.row = to; state.column = from;
      cursor.setAttribute('x', from * size); cursor.setAttribute('y', to * size);
      xs.forEach((t, i) => t.classList.toggle('on', i === from));
      ys.forEach((t, i) => t.classList.toggle('on', i === to));
      const w = weight(state.head, to, from);
      told.replaceChildren(el('strong', {}, data.heads[state.head].name), ' at ', el('code', {}, seen(shown[to])), ` (${to}) looks at `,
        el('code', {}, seen(shown[from])), ` (${from}): `, el('strong', { class: 'at-weight' }, number(w, 3)), ` of its attention (${percent(w)})`);
    };
    const drawMatrix = () => {
      const shown = tokens(), n = shown.length;
      size = Math.max(10, Math.min(30, Math.floor(600 / n)));
      const font = Math.max(9, Math.min(13, size - 1)), most = n > 30 ? 10 : 14;
      const longest = Math.max(...shown.map((t) => [...cut(t, most)].length));
      const margin = Math.ceil(longest * font * 0.62) + 10;
      const side = n * size;
      cells = svg('g', {});
      for (let to = 0; to < n; to++) {
        for (let from = 0; from <= to; from++) {
          const w = weight(state.head, to, from);
          cells.append(svg('rect', { class: 'cell', x: from * size, y: to * size, width: size, height: size, style: { fill: shade(w) } }));
        }
      }
      ys = shown.map((t, i) => svg('text', { x: -6, y: (i + 0.5) * size + font * 0.35, 'text-anchor': 'end', 'font-size': font }, cut(t, most)));
      xs = shown.map((t, i) => svg('text', { 'font-size': font, transform: `translate(${(i + 0.5) * size + font * 0.35} -6) rotate(-90)` }, cut(t, most)));
      cursor = svg('rect', { class: 'cursor', width: size, height: size });
      const width = side + margin + 8, height = side + margin + 28;
      const drawing = svg('svg', { class: 'at', width, height, viewBox: `${-margin} ${-margin - 20} ${width} ${height}`, tabindex: 0, role: 'application',
        'aria-label': `attention of ${data.heads[state.head].name}: rows look at columns; arrow keys move` },
        svg('text', { x: side / 2, y: -margin - 6, 'text-anchor': 'middle', 'font-size': 12 }, 'looks at'), cells, xs, ys, cursor);
      drawing.addEventListener('pointermove', (event) => {
        const box = drawing.getBoundingClientRect(), scale = width / box.width;
        const from = Math.floor(((event.clientX - box.left) * scale - margin) / size);
        const to = Math.floor(((event.clientY - box.top) * scale - margin - 20) / size);
        if (from >= 0 && to >= from && to < n) tell(to, from);
      });
      drawing.addEventListener('keydown', (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step) return;
        event.preventDefault();
        const to = state.row + step[0], from = state.column + step[1];
        if (to >= 0 && to < n && from >= 0 && from <= to) tell(to, from);
      });
      place.replaceChildren(drawing);
      if (state.row === null || state.row >= n) {
        state.row = answer();
        const row = [...Array(state.row + 1).keys()].map((from) => weight(state.head, state.row, from));
        state.column = row.indexOf(Math.max(...row));
      }
      tell(state.row, state.column);
    };
    const draw = () => { drawStrip(); drawMatrix(); };

    root.append(
      el('div', { class: 'bar' }, el('label', {}, 'Prompt ', prompts)),
      el('h3', {}, 'What each head looks at from the answer position'), strip,
      el('h3', {}, 'The whole pattern of one head'),
      el('div', { class: 'bar' }, el('label', {}, 'Head ', heads), el('span', { class: 'muted' }, 'Rows are where it looks from, columns what it looks at; each row adds up to 1.')),
      told, place);
    draw();
    CF.on('select', (name) => {
      const found = data.heads.findIndex((head) => head.name === name);
      if (found >= 0 && found !== state.head) choose(found, { tell: false });
    });
  });
})();

/* Neurons and features: the contexts in which they fire, and the tokens that they promote. */
(() => {
  'use strict';
  const { el, number, signed, percent, count, tip } = CF;

  document.head.append(el('style', {}, `
    .un details { border-bottom: 1px solid var(--line); padding: 0.35rem 0; }
    .un summary { display: flex; flex-wrap: wrap; gap: 0.2rem 0.9rem; align-items: baseline; }
    .un summary::before { content: '▸'; color: var(--muted); } .un details[open] > summary::before { content: '▾'; }
    .un .name { font-family: var(--mono); font-weight: 600; }
    .un ol { list-style: none; margin: 0.2rem 0 0.6rem; padding: 0; }
    .un li { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr); gap: 0.7rem; padding: 0.12rem 0; }
    .un .text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; }
    .un mark { color: inherit; border-radius: 3px; padding: 0 1px; outline: 1px solid var(--accent); }
    .un .tokens { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 1.6rem; }
    .un .tk { display: grid; grid-template-columns: 8rem minmax(0, 1fr) 4rem; gap: 0.6rem; font-size: 0.85rem; align-items: center; }
    .un .tk code { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
    .un .tk i { display: block; height: 0.75rem; border-radius: 2px; }
    .un .selected { background: var(--soft); }
  `));

  const FIRST = 12; // entries that are shown before the button
  const seen = (token) => token.replace(/ /g, '\u00b7').replace(/\n/g, '⏎').replace(/\t/g, '⇥');

  const context = (found, largest, joinedBy) => {
    const parts = [];
    found.tokens.forEach((token, i) => {
      if (i) parts.push(joinedBy);
      const share = largest ? Math.min(1, Math.abs(found.value) / largest) : 0;
      parts.push(i === found.at
        ? el('mark', { style: { background: `color-mix(in oklab, var(${found.value < 0 ? '--neg' : '--pos'}) ${(12 + 48 * share).toFixed(0)}%, var(--card))` } }, token)
        : token);
    });
    return el('li', {}, el('span', { class: 'num' }, signed(found.value, 2)), el('span', { class: 'text' }, parts));
  };

  const tokens = (title, list, most) => el('div', {}, el('h3', {}, title), list.map((row) => el('div', { class: 'tk' },
    el('code', {}, seen(row.token)),
    el('i', { 'aria-hidden': 'true', style: { width: `${most ? (100 * Math.abs(row.value)) / most : 0}%`, background: `var(${row.value < 0 ? '--neg' : '--pos'})` } }),
    el('span', { class: 'num' }, signed(row.value, 2)))));

  const inner = (row, data) => {
    const largest = Math.max(0, ...[...row.contexts, ...(row.negative_contexts || [])].map((c) => Math.abs(c.value)));
    const most = Math.max(0, ...[...row.promotes, ...row.suppresses].map((t) => Math.abs(t.value)));
    const heads = Object.entries(row.heads || {}).map(([entry, list]) => el('p', {}, `Heads that can write into it${entry === 'in' ? '' : ` (${entry})`}: `,
      list.map((h, i) => [i ? ', ' : '', tip(el('button', { type: 'button', class: 'small mono', onclick: () => CF.select(h.head) }, h.head), () => `size ${number(h.size, 2)}, more than ${number(h.percentile, 0)} % of the layer's units`), ` z ${signed(h.z, 1)}`])));
    return [
      el('p', { class: 'muted' }, `Fires on ${percent(row.activation.fires)} of ${count(row.activation.tokens, 'token')}; mean ${number(row.activation.mean, 3)}, largest ${number(row.activation.largest, 2)}, smallest ${number(row.activation.smallest, 2)}.`),
      row.contexts.length ? [el('h3', {}, 'Strongest contexts'), el('ol', {}, row.contexts.map((c) => context(c, largest, data.joined_by)))] : el('p', { class: 'muted' }, 'It fired on none of the texts.'),
      row.negative_contexts?.length ? [el('h3', {}, 'Most negative contexts'), el('ol', {}, row.negative_contexts.map((c) => context(c, largest, data.joined_by)))] : null,
      el('div', { class: 'tokens' }, tokens('Promotes', row.promotes, most), tokens('Suppresses', row.suppresses, most)),
      row.answer ? el('p', { class: 'muted' }, `Toward the task's answer: ${signed(row.answer.inner, 3)} (cosine ${signed(row.answer.cosine, 2)}), more than ${number(row.answer.percentile, 0)} % of the layer's units.`) : null,
      heads,
    ].flat(Infinity).filter(Boolean);
  };

  CF.section('units', 'Neurons and features', (root, data) => {
    const list = el('div', { class: 'un' });
    if (data.source) {
      root.append(el('p', {}, `Contexts from ${data.source.from} (${count(data.source.texts, 'text')}, ${count(data.source.tokens, 'token')}); the marked token is where the unit is strongest. `,
        'Promoted tokens are the logit lens: the direct path through the final norm and the unembedding alone.'));
    }
    const entries = data.nodes.map((row, i) => {
      const body = el('div', {});
      const entry = el('details', { 'data-name': row.name, ontoggle: () => { if (entry.open && !body.childElementCount) body.append(...inner(row, data)); } },
        el('summary', {}, el('span', { class: 'name' }, row.name),
          row.label ? el('strong', {}, row.label) : row.hint ? el('span', { class: 'muted' }, '→ ', el('code', {}, row.hint)) : null,
          row.role ? el('span', { class: 'badge' }, row.role) : null,
          row.score === null ? null : el('span', { class: 'muted' }, `score ${CF.short ? CF.short(row.score) : signed(row.score, 4)}`),
          row.inside ? null : el('span', { class: 'muted' }, 'outside the circuit')), body);
      if (i === 0) entry.open = true;
      const text = [row.name, row.label, row.role, row.hint, ...row.promotes.map((t) => t.token), ...row.contexts.flatMap((c) => c.tokens.join(data.joined_by))].filter(Boolean).join('\n').toLowerCase();
      return { entry, text, name: row.name };
    });
    const found = el('span', { class: 'muted', 'aria-live': 'polite' });
    const search = el('input', { type: 'search', placeholder: 'name, label, token or text', 'aria-label': 'find a unit', style: { 'min-width': '16rem' }, oninput: () => filter() });
    const more = el('button', { type: 'button', class: 'small', hidden: true, onclick: () => { all = true; filter(); } });
    let all = false;
    const filter = () => {
      const word = search.value.trim().toLowerCase();
      let shown = 0;
      let matching = 0;
      for (const one of entries) {
        const fits = one.text.includes(word);
        matching += fits;
        one.entry.hidden = !fits || (!all && shown >= FIRST);
        shown += !one.entry.hidden;
      }
      more.hidden = shown === matching;
      more.textContent = `show the other ${matching - shown}`;
      found.textContent = word ? `${matching} of ${entries.length}` : '';
    };
    if (entries.length > 5) root.append(el('div', { class: 'bar' }, search, found));
    list.append(...entries.map((one) => one.entry));
    root.append(list, more);
    filter();
    if (data.unnamed.length) {
      root.append(el('p', { class: 'muted' }, `${data.nodes.length ? 'Not looked at' : 'No contexts were gathered for'}: `,
        data.unnamed.map((row, i) => [i ? ', ' : '', el('span', { class: 'mono' }, row.name), row.label ? ` (${row.label})` : '']), '. ',
        el('code', {}, `circuitfind name ${CF.data.manifest?.name || 'RUN'}`), ' looks at them.'));
    }
    CF.on('select', (name) => entries.forEach((one) => one.entry.classList.toggle('selected', one.name === name)));
  });
})();

/* What stands in when heads are removed: who compensates, and where the lost direct effect went. */
(() => {
  'use strict';
  const { el, number, signed, percent, interval, tip } = CF;

  document.head.append(el('style', {}, `
    .rb { position: relative; height: 1.7rem; margin: 0.15rem 0; min-width: 16rem; }
    .rb i { position: absolute; top: 0; height: 100%; border-inline-end: 1px solid var(--card); min-width: 2px; }
    .rb i:focus-visible { outline-offset: 1px; z-index: 2; }
    .rb b { position: absolute; top: -0.2rem; bottom: -0.2rem; width: 0; border-left: 2px solid var(--fg); pointer-events: none; }
    .rb b.whole { border-left-style: dashed; }
    .rb-row { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr) 9rem; gap: 0.8rem; align-items: center; font-size: 0.88rem; }
    .rb-axis { position: relative; height: 1.2rem; font-size: 0.78rem; color: var(--muted); }
    .rb-axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
    .rb-key { display: inline-block; width: 0.85rem; height: 0.85rem; border-radius: 2px; vertical-align: -0.08rem; }
    #backups .bar label { max-width: 100%; }
    .bk td button, .bk td.mono { white-space: nowrap; overflow-wrap: normal; }
    .bk .more thead th { position: static; background: none; } .bk .more > td { background: var(--soft); }
    .bk td .why { margin: 0.2rem 0 0.4rem; padding-left: 1.1rem; }
    @media (max-width: 760px) { .rb-row { grid-template-columns: minmax(0, 1fr); gap: 0.1rem; margin-bottom: 0.6rem; } .rb-row.axis { margin: 0; } .rb { min-width: 0; } }
  `));

  /* Apart for every common kind of colour blindness (Okabe and Ito). */
  const COLOUR = { lost: '#d55e00', heads: '#009e73', mlps: '#56b4e9', norm: '#0072b2', metric: '#cc79a7' };
  const NAME = { lost: 'really lost', heads: 'made up for by other heads', mlps: 'by MLPs', norm: 'by the final norm', metric: "by the metric's curve" };
  const least = 0.0005;
  const joined = (names) => (names.length > 4 ? `${names.slice(0, 4).join(' + ')} + ${names.length - 4} more` : names.join(' + '));

  const node = (name) => el('button', { type: 'button', class: 'small mono', onclick: () => CF.select(name.split('<')[0]) }, name);
  const nodes = (names) => names.map((name, i) => [i ? ' ' : '', node(name)]);
  const share = (row) => (row.share ? `${percent(row.share, 0)}${row.low === null ? '' : ` [${number(100 * row.low, 0)}, ${number(100 * row.high, 0)}]`}` : '0 %');

  const detail = (row) => [
    el('ul', { class: 'why' }, row.reasons.map((text) => el('li', {}, text))),
    el('table', {},
      el('thead', {}, el('tr', {}, ['ablation', 'direct effect after', 'its rise', 'which must exceed', 'lost when it is frozen', 'interaction', 'sure'].map((t, i) => el('th', { scope: 'col', class: i && i < 6 ? 'num' : null }, t)))),
      el('tbody', {}, row.evidence.map((e) => el('tr', {}, el('td', {}, e.ablation),
        [signed(e.after, 2), interval(e.compensation, 2), number(e.floor, 2), interval(e.freeze, 2), interval(e.interaction, 2)].map((t) => el('td', { class: 'num' }, t)),
        el('td', {}, e.sure ? 'yes' : 'no'))))),
  ];

  const table = (rows, metric) => {
    const heads = ['removed', 'compensates', 'class', 'at', 'effect recovered', `direct effect (${metric})`, 'ablations that agree', ''];
    const lines = rows.map((row, i) => {
      const more = el('tr', { hidden: true, id: `backup-${i}`, class: 'more' }, el('td', { colspan: heads.length }, detail(row)));
      const button = el('button', { type: 'button', class: 'small', 'aria-expanded': 'false', 'aria-controls': `backup-${i}`, onclick: () => {
        more.hidden = !more.hidden;
        button.setAttribute('aria-expanded', String(!more.hidden));
      } }, 'evidence');
      return [el('tr', { 'data-name': row.name },
        el('td', {}, nodes(row.covers)), el('td', {}, node(row.name)),
        el('td', {}, el('strong', {}, row.kind), el('div', { class: 'muted', style: { 'font-size': '0.82rem', 'min-width': '22ch' } }, row.meaning)),
        el('td', { class: 'mono' }, row.reader), el('td', { class: 'num' }, share(row)), el('td', { class: 'num' }, interval(row.direct, 2)),
        el('td', {}, row.agree.length ? `${row.agree.length} of ${row.evidence.length}: ${row.agree.join(', ')}` : `none of ${row.evidence.length}`),
        el('td', {}, button)), more];
    });
    return el('div', { class: 'scroll bk' }, el('table', {},
      el('thead', {}, el('tr', {}, heads.map((t) => el('th', { scope: 'col', class: t.includes('effect') ? 'num' : null }, t)))),
      el('tbody', {}, lines)));
  };

  const bars = (set, data) => {
    const drawn = set.accounts.filter((account) => account.shares);
    const up = (account) => Object.values(account.shares).filter((s) => s > 0).reduce((a, b) => a + b, 0);
    const down = (account) => Object.values(account.shares).filter((s) => s < 0).reduce((a, b) => a - b, 0);
    const high = Math.max(1, ...drawn.map(up)), low = Math.max(0, ...drawn.map(down));
    const at = (value) => (100 * (value + low)) / (high + low);
    const bar = (account) => {
      let right = 0, left = 0;
      const parts = Object.keys(data.parts).filter((part) => Math.abs(account.shares[part]) >= least).map((part) => {
        const s = account.shares[part], start = s > 0 ? right : left + s;
        if (s > 0) right += s; else left += s;
        const words = `${account.ablation}: ${s > 0 ? NAME[part] : `${data.parts[part]}: made it worse by`} ${percent(Math.abs(s), 1)} of the lost direct effect (${signed(account.parts[part], 3)} ${data.metric})`;
        return tip(el('i', { tabindex: 0, role: 'img', 'aria-label': words, 'data-part': part, style: { left: `${at(start)}%`, width: `${at(start + Math.abs(s)) - at(start)}%`, background: COLOUR[part], opacity: s > 0 ? 1 : 0.6 } }), () => words);
      });
      return el('div', { class: 'rb-row' }, el('span', {}, account.ablation),
        el('div', { class: 'rb', 'data-ablation': account.ablation }, parts, el('b', { style: { left: `${at(0)}%` } }), el('b', { class: 'whole', style: { left: `${at(1)}%` } })),
        el('span', { class: 'num', style: { 'white-space': 'nowrap' } }, `${number(account.lost_direct, 2)} ${data.metric}`));
    };
    /* A label at an end of the bar stays inside it. */
    const label = (value, words) => el('span', { style: { left: `${at(value)}%`, transform: `translateX(${at(value) > 92 ? -100 : at(value) < 8 ? 0 : -50}%)` } }, words);
    const axis = el('div', { class: 'rb-row axis' }, el('span', {}), el('div', { class: 'rb-axis' },
      label(0, '0'), label(1, '100 %')), el('span', { class: 'num muted' }, 'lost direct effect'));
    const none = set.accounts.filter((account) => !account.shares).map((account) => account.ablation);
    return el('div', {}, axis, drawn.map(bar),
      none.length ? el('p', { class: 'muted' }, `Under ${none.join(' and ')} ablation nothing of the direct effect was lost, so there is nothing to divide.`) : null,
      el('details', {}, el('summary', {}, 'The same as a table'), el('div', { class: 'scroll' }, el('table', {},
        el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'ablation'), ['lost direct effect', ...Object.values(data.parts), 'gap'].map((t) => el('th', { class: 'num', scope: 'col' }, t)))),
        el('tbody', {}, set.accounts.map((account) => el('tr', {}, el('td', {}, account.ablation),
          [account.lost_direct, ...Object.keys(data.parts).map((part) => account.parts[part])].map((v) => el('td', { class: 'num' }, signed(v, 3))),
          el('td', { class: 'num' }, Math.abs(account.gap) < 5e-4 ? '0.000' : signed(account.gap, 3)))))))));
  };

  CF.section('backups', 'Backups and repair', (root, data) => {
    // A name of a node keeps its small letter.
    const sentence = /^[a-z]+\d/.test(data.verdict) ? data.verdict : data.verdict.charAt(0).toUpperCase() + data.verdict.slice(1);
    root.append(el('p', {}, `${sentence}.`));
    if (data.rows.length) root.append(table(data.rows, data.metric));
    const told = data.sets.filter((set) => set.accounts.length);
    if (told.length) {
      const place = el('div', {});
      const draw = (i) => place.replaceChildren(bars(told[i], data));
      const title = (set) => `${joined(set.members)} at ${set.reader} (${set.name})${set.found.length ? `, woke ${set.found.join(', ')}` : ''}`;
      root.append(el('h3', {}, 'Where the lost direct effect went'),
        el('div', { class: 'bar' }, el('label', {}, 'Removed ', el('select', { style: { 'max-width': '100%' }, onchange: (event) => draw(Number(event.target.value)) },
          told.map((set, i) => el('option', { value: i }, title(set)))))),
        el('div', { class: 'bar' }, Object.keys(data.parts).map((part) => el('span', {}, el('i', { class: 'rb-key', style: { background: COLOUR[part] } }), ` ${NAME[part]}`))),
        place,
        el('p', { class: 'muted' }, '100 % is the direct effect that the removed heads no longer have. Parts to the left of the solid line made it worse; those to the right, less those to the left, add up to 100 %.'));
      draw(0);
    }
    if (data.notes.length) root.append(el('ul', { class: 'muted' }, data.notes.map((note) => el('li', {}, note))));
  });
})();

(() => {
  'use strict';
  const { el, svg } = CF;

  /* Values with their intervals on one axis, with 0 (the empty circuit) and 1 (the whole model) marked. */
  const WIDTH = 300;
  const axis = (rows) => {
    const finite = rows.flatMap(({ faithfulness: f }) => [f.value, f.low, f.high]).filter((x) => x !== null && Math.abs(x) < 20);
    const low = Math.min(0, ...finite), high = Math.max(1, ...finite), pad = 0.06 * (high - low);
    const from = low - pad, to = high + pad;
    return (value) => 8 + ((Math.max(from, Math.min(to, value)) - from) / (to - from)) * (WIDTH - 16);
  };
  const drawn = ({ faithfulness: f }, x) => {
    const ends = [f.low === null ? -1e9 : f.low, f.high === null ? 1e9 : f.high].map(x);
    return svg('svg', { viewBox: `0 0 ${WIDTH} 22`, class: 'interval', role: 'img',
      'aria-label': `from ${CF.number(f.low)} to ${CF.number(f.high)}` },
      [0, 1].map((mark) => svg('line', { x1: x(mark), x2: x(mark), y1: 0, y2: 22, stroke: 'var(--muted)', 'stroke-dasharray': '3 3' })),
      svg('line', { x1: ends[0], x2: ends[1], y1: 11, y2: 11, stroke: 'var(--accent)', 'stroke-width': 3 }),
      ends.map((end) => svg('line', { x1: end, x2: end, y1: 5, y2: 17, stroke: 'var(--accent)', 'stroke-width': 1.5 })),
      svg('circle', { cx: x(f.value), cy: 11, r: 4, fill: 'var(--accent)' }));
  };
  const marks = (x) => svg('svg', { viewBox: `0 0 ${WIDTH} 16`, class: 'interval', 'aria-hidden': 'true' },
    [[0, 'empty 0'], [1, 'model 1']].map(([at, words]) =>
    svg('text', { x: Math.max(24, Math.min(WIDTH - 26, x(at))), y: 12, 'text-anchor': 'middle', fill: 'var(--muted)', 'font-size': 11, 'font-weight': 400 }, words)));

  const faithfulness = (data) => {
    const rows = [...data.evaluations, ...data.held_out];
    if (!rows.length) return null;
    const x = axis(rows);
    const cell = (value) => el('td', { class: 'num' }, CF.short(value));
    const metric = rows[0].metric;
    return el('div', null,
      el('h3', null, 'Faithfulness, with 95 % bootstrap intervals over prompts'),
      el('div', { class: 'scroll' }, el('table', { class: 'faithful' },
        el('thead', null, el('tr', null, ['ablation', 'measured on', marks(x), 'faithfulness'].map((title) => el('th', { scope: 'col' }, title)),
          ['circuit', 'model', 'empty'].map((title) => el('th', { scope: 'col', class: 'num' }, title)))),
        el('tbody', null, rows.map((one) => el('tr', null, el('th', { scope: 'row' }, one.ablation), el('td', null, `${one.n_prompts} ${one.on}`),
          el('td', null, drawn(one, x)), el('td', { class: 'value' }, el('strong', null, CF.number(one.faithfulness.value)),
            ` ${CF.interval(one.faithfulness).replace(/^\S+ /, '')}`),
          cell(one.circuit), cell(one.full), cell(one.empty)))))),
      el('p', { class: 'muted small-text' }, `${data.formula}. Circuit, model and empty: mean ${metric}.`));
  };

  const certificate = (data) => {
    const found = data.evidence;
    if (!found) return null;
    const at = `at faithfulness ≥ ${found.faithfulness} with 95 % confidence under ${found.ablations.join(' and ')} ablation`;
    const holds = !found.certified && !found.refuted && found.holds_under.length
      ? el('p', null, `It holds under ${found.holds_under.join(' and ')} ablation.`) : null;
    const how = { true: ['beats', 'good'], false: ['no better than', 'warn'], null: ['not held against', 'muted'] };
    return el('div', null,
      el('h3', null, found.certified ? 'Certified' : 'Not certified', ' ', el('span', { class: 'muted plain' }, at)),
      found.reasons.length ? el('ul', null, found.reasons.map((reason) => el('li', null, reason))) : null, holds,
      found.controls.length ? el('h3', null, 'Held against') : null,
      found.controls.length ? el('ul', { class: 'controls' }, found.controls.map((one) => {
        const [words, look] = how[String(one.beaten)];
        return el('li', null, el('span', { class: look }, words), ` ${one.name}: ${one.what}`);
      })) : null);
  };

  const sizes = (data) => data.sizes.map(({ what, kept, of, whole }) => [
    what, of ? `${kept.toLocaleString('en')} of ${of.toLocaleString('en')}${whole ? ` ${whole}` : ''} (${CF.percent(kept / of)})` : String(kept)]);

  const facts = (data) => {
    const c = data.conditions;
    const under = [c.ablation && `${c.ablation} ablation`, c.direction, c.counterfactual && `counterfactual ${c.counterfactual}`,
      c.metric && `metric ${c.metric}`, c.rule && `pruned to ${c.rule}`, c.nodes && c.nodes !== 'heads,mlps' && `nodes ${c.nodes}`,
      c.dictionaries && `dictionaries ${c.dictionaries}`, c.errors && `errors ${c.errors}`, c.model_b && `model B ${c.model_b}`];
    const p = data.prompts;
    const rows = [
      ['task', c.task || data.task], ['model', c.model || data.model], ['method', c.method], ['under', under.filter(Boolean).join(', ')],
      ...sizes(data), ['made of', data.parts && data.parts + (data.minimal ? '; none can be dropped alone' : '')],
      ['prompts', p && `${p.used} used, accuracy ${CF.percent(p.accuracy)}`],
      ['completeness', data.completeness && `${CF.interval(data.completeness.without_circuit)} is left without the circuit (0 is complete)`],
      ['backups', data.backups],
      ['known circuit', data.known
        && `precision ${CF.number(data.known.precision, 2)}, recall ${CF.number(data.known.recall, 2)} over its ${data.known.level}`],
      ['cost', `${CF.number(data.cost.seconds, 1)} s, ${data.cost.forward_passes} forward and ${data.cost.backward_passes} backward passes`
        + (data.device ? ` on ${data.device}, ${data.dtype}` : '')],
      ['run', `${data.run}, ${data.created.slice(0, 16).replace('T', ' ')} UTC`],
    ];
    return el('dl', null, rows.filter(([, value]) => value).map(([name, value]) => [el('dt', null, name), el('dd', null, value)]));
  };

  CF.section('verdict', 'Verdict', (root, data) => {
    const state = data.evidence
      ? data.evidence.certified ? ['certified', 'good'] : [data.evidence.refuted ? 'refuted' : 'not certified', 'warn']
      : null;
    const c = data.conditions;
    root.append(
      el('p', { class: 'row lead' },
        state ? el('span', { class: `badge ${state[1]}`, id: 'state' }, state[0]) : null,
        el('span', null, `A ${data.what}`, data.sizes.length ? ` of ${data.sizes.map((s) => CF.count(s.kept, s.what.slice(0, -1))).join(' and ')}`
          : '',
          c.ablation ? `, at this threshold, under ${c.ablation} ablation` : '',
            c.counterfactual ? ` and the counterfactual ${c.counterfactual}. Others give another one.` : '.')),
      facts(data));
    for (const part of [faithfulness(data), certificate(data)]) if (part) root.append(part);
    if (data.warnings.length) {
      root.append(el('h3', null, 'Beware'), el('ul', { class: 'warn', id: 'warnings' }, data.warnings.map((text) => el('li', null, CF.prose(text)))));
    }
    root.append(el('h3', null, 'Make it again'),
      el('div', { class: 'command' }, el('pre', { id: 'command' }, CF.words(data.command)), CF.copyButton(data.command)));
  });
})();

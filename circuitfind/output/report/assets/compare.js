/* Two runs beside each other: what they were found under, their verdicts, both circuits as one, what was gained and lost. */
(() => {
  'use strict';
  const { el, svg, number, signed, interval, percent, count } = CF;

  document.head.append(el('style', {}, `
    :root { --gained: #00795a; --lost: #c04a00; --both: #7d7d7d; }
    :root[data-theme="dark"] { --gained: #3fcf9f; --lost: #f5944f; --both: #8f949b; }
    @media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) { --gained: #3fcf9f; --lost: #f5944f; --both: #8f949b; } }
    .fate-gained { color: var(--gained); } .fate-lost { color: var(--lost); } .fate-kept, .fate-outside { color: var(--muted); }
    .cmp-graph svg.circuit { height: clamp(22rem, 66vh, 44rem); }
    .cmp-graph .edge .line { stroke: var(--both); } .cmp-graph .edge.gained .line { stroke: var(--gained); }
    .cmp-graph .edge.lost .line { stroke: var(--lost); stroke-dasharray: 6 4; }
    .cmp-graph .node.gained rect { stroke: var(--gained); stroke-width: 2.5; }
    .cmp-graph .node.lost rect { stroke: var(--lost); stroke-width: 2.5; stroke-dasharray: 5 3; }
    .cmp-key { display: inline-block; width: 1.8rem; height: 0; border-top: 3px solid var(--both); vertical-align: 0.25rem; margin-right: 0.35rem; }
    .cmp-key.gained { border-color: var(--gained); } .cmp-key.lost { border-color: var(--lost); border-top-style: dashed; }
    .cmp td.now { font-weight: 600; } .cmp th[scope="row"] { white-space: nowrap; }
  `));

  const or = (text) => (text === '' || text === null || text === undefined ? 'none' : text);
  const names = () => [CF.data.conditions.before, CF.data.conditions.after];
  const titles = () => names().map((name, i) => el('span', { class: 'mono' }, CF.data.conditions.links[i] ? el('a', { href: CF.data.conditions.links[i] }, name) : name));

  CF.section('conditions', 'Conditions', (root, data) => {
    const [a, b] = titles();
    root.append(el('p', {}, 'Before: ', a, '. After: ', b, '. What differs in how they were found:'));
    if (data.differs.length) {
      root.append(el('table', { class: 'cmp', id: 'differs' }, el('thead', {}, el('tr', {}, ['', 'before', 'after'].map((t) => el('th', { scope: 'col' }, t)))),
        el('tbody', {}, data.differs.map((row) => el('tr', {}, el('th', { scope: 'row' }, row.what), el('td', {}, or(row.before)), el('td', {}, or(row.after)))))));
    } else root.append(el('p', { id: 'differs' }, 'Nothing that is recorded.'));
    if (data.alike.length) root.append(el('p', { class: 'muted' }, 'Alike: ', data.alike.map((row) => `${row.what} ${row.value}`).join(', '), '.'));
    if (data.notes.length) root.append(el('ul', { class: 'warn', id: 'notes' }, data.notes.map((text) => el('li', {}, text))));
  });

  CF.section('verdicts', 'Verdicts', (root, sides) => {
    const rows = [];
    const put = (title, of) => {
      const cells = sides.map(of);
      if (cells.some((cell) => cell !== null && cell !== undefined && cell !== '')) rows.push([title, cells]);
    };
    put('certified', (s) => (s.certified === null ? 'no evidence gathered' : s.certified ? 'yes' : el('span', {}, el('span', { class: 'warn' }, 'no'), s.reasons.length ? `: ${s.reasons.join('; ')}` : '')));
    const every = ['evaluations', 'held_out'].flatMap((part) => sides.flatMap((s) => s[part].map((one) => `${one.ablation}|${one.on}`)));
    for (const key of new Set(every)) {
      const [ablation, on] = key.split('|');
      put(`faithfulness, ${ablation} ablation`, (s) => {
        const one = [...s.evaluations, ...s.held_out].find((e) => e.ablation === ablation && e.on === on);
        return one ? el('span', {}, el('strong', {}, interval(one.faithfulness)), el('span', { class: 'muted' }, ` ${count(one.n_prompts, 'prompt')}, ${on}; ${one.metric}: circuit ${CF.short(one.circuit)}, model ${CF.short(one.full)}, empty ${CF.short(one.empty)}`)) : 'not measured';
      });
    }
    for (const what of ['nodes', 'edges']) {
      put(what, (s) => {
        const size = s.sizes.find((one) => one.what === what);
        return size ? `${size.kept.toLocaleString('en')}${size.of ? ` of ${size.of.toLocaleString('en')} (${percent(size.kept / size.of)})` : ''}` : '';
      });
    }
    put('made of', (s) => s.parts);
    put('left without the circuit', (s) => (s.completeness ? `${interval(s.completeness.without_circuit)} (0 is complete)` : ''));
    put('backups', (s) => s.backups);
    put('known circuit', (s) => (s.known ? `precision ${number(s.known.precision, 2)}, recall ${number(s.known.recall, 2)} over its ${s.known.level}` : ''));
    put('prompts', (s) => `${s.prompts.used} used, accuracy ${percent(s.prompts.accuracy)}`);
    put('cost', (s) => `${number(s.cost.seconds, 1)} s, ${s.cost.forward_passes} forward and ${s.cost.backward_passes} backward passes`);
    put('status', (s) => (s.status === 'finished' ? '' : s.status));
    put('make it again', (s) => el('code', {}, CF.words(s.command)));
    root.append(el('table', { class: 'cmp', id: 'verdict-table' },
      el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, ''), titles().map((t) => el('th', { scope: 'col' }, t)))),
      el('tbody', {}, rows.map(([title, cells]) => el('tr', {}, el('th', { scope: 'row' }, title), cells.map((cell) => el('td', {}, cell)))))));
  });

  const FATES = [['gained', 'gained: after alone'], ['lost', 'lost: before alone'], ['kept', 'in both']];
  const SLOTS = { head: ['q', 'k', 'v'], kv: ['k', 'v'] };
  const scores = (row) => `${row.before === null ? 'no score' : signed(row.before)} → ${row.after === null ? 'no score' : signed(row.after)}`;

  CF.section('merged', 'Both circuits', (root, graph) => {
    const shown = new Set(FATES.map(([fate]) => fate));
    let hovered = null, selected = null;
    const picture = CF.picture('both circuits as one', {
      onSelect: (id) => { selected = selected === id ? null : id; light(); },
      onEdge: (edge) => { hovered = edge; light(); },
      onFold: () => {},
    });
    for (const fate of ['gained', 'lost', 'kept']) {
      picture.element.querySelector('defs').append(svg('marker', { id: `arrow-${fate}`, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: 'userSpaceOnUse', orient: 'auto' },
        svg('path', { d: 'M0,0.8 L8,4 L0,7.2 z', fill: `var(--${fate === 'kept' ? 'both' : fate})` })));
    }
    CF.tip(picture.lines, () => hovered && `${hovered.name}\n${hovered.fate === 'kept' ? 'in both' : hovered.fate}: ${scores(hovered)}`);
    const told = el('p', { role: 'status', class: 'muted', id: 'merged-told' });
    const light = () => {
      picture.light({ selected, edge: hovered });
      const node = selected && graph.nodes[selected];
      told.textContent = node ? `${selected}, ${CF.kindOf(selected, node)}, ${node.fate === 'kept' ? 'in both' : node.fate}${node.role ? `, ${node.role}` : ''}; score ${scores(node)}` : 'Click a node for its scores; drag it, or zoom with ctrl and the wheel.';
    };
    const strength = (edge) => Math.max(Math.abs(edge.before || 0), Math.abs(edge.after || 0));
    const draw = () => {
      const edges = graph.edges.filter((edge) => shown.has(edge.fate)).map((edge) => ({ ...edge, s: strength(edge) }));
      const there = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
      const nodes = [...there].filter((id) => graph.nodes[id]).map((id) => {
        const node = graph.nodes[id];
        const made = {
          id, kind: node.kind, rank: node.rank, position: node.position, title: node.short || id.split('@')[0],
          under: [node.position && `@${node.position}`, node.label || node.role].filter(Boolean).join(' '),
          slots: SLOTS[node.kind] || [], used: new Set(edges.filter((e) => e.to === id && e.slot).map((e) => e.slot)),
          inside: true, ghost: false, said: `${id}, ${node.fate === 'kept' ? 'in both' : node.fate}, score ${scores(node)}`,
        };
        return { ...made, ...CF.nodeSize(made) };
      });
      if (!nodes.length) return picture.element.replaceWith(empty), undefined;
      if (empty.isConnected) empty.replaceWith(picture.element);
      const layout = CF.layout(nodes, edges, { gap: 18, between: 46, lanes: edges.length <= 400, positions: [...new Set(nodes.map((n) => n.position).filter(Boolean))] });
      let last = '';
      const labels = layout.rows.map((row) => {
        const { rank, kind } = row.nodes[0];
        const text = kind === 'input' || kind === 'logits' ? '' : `${kind === 'head' ? 'attn' : kind === 'kv' ? 'kv' : 'MLP'} ${rank[0]}`;
        const again = text === last;
        last = text;
        return { y: row.y, text: again ? '' : text, key: null, folded: false };
      }).filter(({ text }) => text);
      picture.render({ nodes, edges, layout, strongest: Math.max(0, ...edges.map(strength)), labels, keep: false });
      for (const edge of edges) {
        edge.element.classList.add(edge.fate);
        edge.element.querySelector('.line').setAttribute('marker-end', `url(#arrow-${edge.fate})`);
      }
      for (const node of nodes) node.element.classList.add(graph.nodes[node.id].fate);
      light();
    };
    const empty = el('p', { class: 'muted' }, 'No edge is left; show more.');
    const boxes = FATES.map(([fate, words]) => {
      const n = graph.edges.filter((edge) => edge.fate === fate).length;
      const box = el('input', {
        type: 'checkbox', checked: true, 'data-fate': fate,
        onchange: () => { if (box.checked) shown.add(fate); else shown.delete(fate); selected = null; hovered = null; draw(); },
      });
      return el('label', {}, box, ' ', el('span', { class: `cmp-key ${fate}`, 'aria-hidden': 'true' }), `${words} (${count(n, 'edge')})`);
    });
    root.append(el('div', { class: 'bar' }, boxes),
      graph.set_aside ? el('p', { class: 'warn' }, `${count(graph.set_aside, 'edge')} of the circuits are not drawn: one of the models does not have them.`) : '',
      el('div', { class: 'cmp-graph' }, picture.element), told,
      el('p', { class: 'muted' }, 'An edge is as wide as its larger score; the colours say where it is, not its sign.'));
    draw();
  });

  CF.section('changes', 'Changes', (root, data) => {
    const words = (found) => `${found.kept} in both, ${found.gained} gained, ${found.lost} lost; Jaccard ${number(found.jaccard, 2)}`;
    root.append(el('dl', { id: 'counts' }, [['nodes', data.nodes], ['edges', data.edges], ['backups', data.backups]].filter(([, found]) => found)
      .map(([what, found]) => [el('dt', {}, what), el('dd', {}, words(found))])));
    root.append(el('p', { class: 'muted' }, `Shift: how far a score moved, as a share of ${data.shares_of.what} of each run (${CF.short(data.shares_of.before)} and ${CF.short(data.shares_of.after)}).`));
    const columns = (what) => [
      { title: what, value: (row) => row.name, cell: (row) => el('span', { class: 'mono' }, row.name) },
      { title: '', value: (row) => row.fate, cell: (row) => el('span', { class: `fate-${row.fate}` }, row.fate === 'kept' ? 'in both' : row.fate) },
      { title: 'before', num: true, size: true, value: (row) => row.before, cell: (row) => signed(row.before, 4) },
      { title: 'after', num: true, size: true, value: (row) => row.after, cell: (row) => signed(row.after, 4) },
      { title: 'shift', num: true, size: true, value: (row) => row.shift, cell: (row) => (row.shift === null ? '–' : `${signed(100 * row.shift, 1)} %`) },
    ];
    for (const [what, found] of [['edge', data.edges], ['node', data.nodes], ['backup', data.backups]]) {
      if (!found) continue;
      root.append(el('h3', {}, `${what[0].toUpperCase()}${what.slice(1)}s`));
      CF.table(root, columns(what), found.rows, { caption: `${what}s`, name: `changed-${what}s` });
    }
  });
})();

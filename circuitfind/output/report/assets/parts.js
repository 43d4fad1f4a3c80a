/* Nodes and edges as tables. */
(() => {
  'use strict';
  const { el } = CF;
  CF.section('tables', 'Nodes and edges', (root) => {
    const { graph, manifest } = CF.data;
    const run = manifest ? manifest.name : 'run';
    const pruning = CF.prune(graph);
    const own = pruning.edges(null);
    const inside = new Set(own.map(pruning.name)), within = new Set(own.flatMap((e) => [e.from, e.to]));
    const link = (name) => el('button', { type: 'button', class: 'link', onclick: () => CF.select(name) }, name);
    const score = (title, value) => ({ title, num: true, size: true, value, cell: (row) => CF.signed(value(row), 3) });
    const mark = (test) => ({ title: 'in the circuit', value: (row) => (test(row) ? 'yes' : '') });

    const nodes = Object.entries(graph.nodes).map(([name, node]) => ({ name, ...node })).filter((node) => within.has(node.name)
      || node.score !== undefined && node.score !== null);
    const has = (key) => nodes.some((node) => node[key]);
    const effect = (kind) => score(`${kind} effect`, (node) => (node.effects && node.effects[kind] ? node.effects[kind][0] : null));
    const least = { title: 'adds to faithfulness', num: true, value: (node) => (node.minimality ? node.minimality.value : null),
      cell: (node) => CF.number(node.minimality ? node.minimality.value : null, 3) };
    root.append(el('h3', null, 'Nodes'));
    CF.table(root, [
      { title: 'node', value: (node) => node.name, cell: (node) => link(node.name) },
      { title: 'kind', value: (node) => node.kind }, mark((node) => within.has(node.name)), score('score', (node) => node.score ?? null),
      ...['noising', 'denoising', 'direct'].filter((kind) => nodes.some((node) => node.effects && node.effects[kind])).map(effect),
      ...(has('minimality') ? [least] : []),
      ...['role', 'label', 'hint'].filter(has).map((key) => ({ title: key, value: (node) => node[key] || '' })),
    ], nodes.sort((a, b) => within.has(b.name) - within.has(a.name) || Math.abs(b.score || 0) - Math.abs(a.score || 0)),
      { name: `${run}-nodes`, caption: 'nodes' });

    const ranked = graph.edges.w.map((w, i) => ({ from: graph.writers[w], reader: graph.readers[graph.edges.r[i]], s: graph.edges.s[i],
      rank: i + 1 }));
    const known = new Set(ranked.map(pruning.name));
    const edges = [...ranked, ...own.filter((e) => !known.has(pruning.name(e))).map((e) => ({ ...e, rank: null }))];
    root.append(el('h3', null, 'Edges'));
    if (graph.edges.w.length < graph.scored) root.append(el('p', { class: 'muted' },
      `The ${graph.edges.w.length.toLocaleString('en')} strongest of ${graph.scored.toLocaleString('en')}; \`circuitfind export\` writes all.`));
    let only = true;
    const button = el('button', {
      type: 'button', class: 'small', 'aria-pressed': 'true',
      onclick: () => {
        only = !only;
        button.setAttribute('aria-pressed', String(only));
        table.draw();
      },
    }, 'the circuit only');
    const table = CF.table(root, [
      { title: 'edge', value: pruning.name }, { title: 'writer', value: (e) => e.from, cell: (e) => link(e.from) },
        { title: 'reader', value: (e) => e.reader },
      score(graph.level === 'node' ? 'strength' : 'score', (e) => e.s), { title: 'rank', num: true, value: (e) => e.rank }, mark((e) => inside.has(pruning.name(e))),
      ...(Object.keys(graph.minimality).length ? [{ title: 'adds to faithfulness', num: true,
        value: (e) => (graph.minimality[pruning.name(e)] || {}).value ?? null,
          cell: (e) => CF.number((graph.minimality[pruning.name(e)] || {}).value, 3) }] : []),
    ], edges, { name: `${run}-edges`, caption: 'edges', extra: [button], keep: (e) => !only || inside.has(pruning.name(e)) });
  });
})();

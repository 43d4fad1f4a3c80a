/* What is known of one node: beside the circuit, when it is clicked. */
(() => {
  'use strict';
  const { el } = CF;
  const KINDS = {
    input: () => 'token and position embedding', logits: () => 'final norm and unembedding',
    head: (name) => `attention head ${/h(\d+)/.exec(name)[1]} of layer ${/a(\d+)/.exec(name)[1]}`,
    kv: (name) => `key/value head ${/kv(\d+)/.exec(name)[1]} of layer ${/a(\d+)/.exec(name)[1]}`,
    mlp: (name) => `MLP of layer ${/m(\d+)/.exec(name)[1]}`, neuron: () => 'neuron', feature: () => 'feature',
    rest: () => 'what stands for no node of its own', error: () => 'what the dictionary misses',
  };
  const EFFECTS = {
    noising: 'lost when it alone carries its corrupted value', denoising: 'gained when it alone carries its clean value',
    direct: 'what it adds by itself, past no other part',
  };

  CF.kindOf = (name, node) => (KINDS[node.kind] ? KINDS[node.kind](name) : node.kind);

  const effects = (node, metric) => {
    if (!node.effects) return null;
    const rows = Object.entries(EFFECTS).filter(([kind]) => node.effects[kind]).map(([kind, words]) => {
      const [value, low, high] = node.effects[kind];
      const end = (x, sign) => (x === null ? `${sign}∞` : CF.number(x, 2));
      return [el('tr', null, el('th', { scope: 'row' }, kind), el('td', { class: 'num' }, CF.signed(value, 2)),
        el('td', { class: 'num muted' }, `[${end(low, '−')}, ${end(high, '')}]`)),
      el('tr', null, el('td', { class: 'muted small-text', colspan: 3 }, words,
        kind === 'direct' && metric !== 'logit-diff' ? ', in logit-diff' : ''))];
    });
    return [el('h3', null, 'Effects'), el('p', { class: 'muted small-text' }, `In ${metric}, means over prompts with 95 % intervals.`),
      el('table', { class: 'effects' }, el('tbody', null, rows.flat()))];
  };

  const evidence = (node) => {
    const found = node.minimality;
    if (!found) return null;
    return [el('h3', null, 'Evidence'), el('p', null, `Without it faithfulness falls by ${CF.interval(found)}`,
      found.superfluous ? el('span', { class: 'warn' }, ': it may add nothing') : '', '.')];
  };

  const backups = (name, node, graph) => {
    const acts = (node.findings || []).map((one) => el('li', null,
      el('strong', null, one.kind),
        ` at ${one.reader}, when ${one.covers.join(' + ')} ${one.covers.length > 1 ? 'are' : 'is'} removed: ${one.meaning}`,
      one.share ? ` (${CF.percent(one.share, 0)} of the lost direct effect)` : '',
      one.reasons.length ? el('ul', { class: 'muted' }, one.reasons.map((reason) => el('li', null, reason))) : null));
    const others = Object.entries(graph.nodes).flatMap(([other, told]) => (told.findings || [])
      .filter((one) => one.covers.includes(name) && ['backup', 'second-order backup', 'relief'].includes(one.kind))
      .map((one) => el('li', null, link(other),
        ` (${one.kind}) at ${one.reader}, when ${one.covers.join(' + ')} ${one.covers.length > 1 ? 'are' : 'is'} removed`)));
    if (!acts.length && !others.length) return null;
    return [el('h3', null, 'Backups'), acts.length ? el('ul', null, acts) : null,
      others.length ? [el('p', { class: 'muted' }, 'When it is removed, these act:'), el('ul', null, others)] : null];
  };

  const link = (name) => el('button', { type: 'button', class: 'link', onclick: () => CF.select(name) }, name);

  const edgeList = (title, edges, other, light, graph) => {
    if (!edges.length) return null;
    const rows = [...edges].sort((a, b) => Math.abs(b.s || 0) - Math.abs(a.s || 0));
    return [el('h3', null, `${title} (${rows.length})`), el('ul', { class: 'edges' }, rows.slice(0, 60).map((edge) => {
      const button = el('button', { type: 'button', class: 'link', onclick: () => CF.select(other(edge)) },
        other(edge), edge.slot && other(edge) === edge.to ? el('span', { class: 'muted' }, ` ${edge.slot}`) : null);
      for (const [event, value] of [['pointerenter', edge], ['focus', edge], ['pointerleave', null], ['blur', null]]) {
        button.addEventListener(event, () => light(value));
      }
      return el('li', null, button, edge.slot && other(edge) === edge.from ? el('span', { class: 'muted' }, ` into ${edge.slot}`) : null,
        el('span', { class: `num ${edge.s < 0 ? 'neg' : 'pos'}` }, graph.level === 'node' ? CF.number(edge.s, 3) : CF.signed(edge.s, 3)));
    })), rows.length > 60 ? el('p', { class: 'muted' }, `and ${rows.length - 60} weaker ones`) : null];
  };

  const positions = (name, graph) => {
    const row = graph.writers.indexOf(name);
    if (!graph.positions || row < 0) return null;
    return [el('h3', null, 'By position'), el('table', null, el('tbody', null, graph.positions.map((position, p) => el('tr', null,
      el('th', { scope: 'row' }, position), el('td', { class: 'num' }, CF.signed(graph.nodes_at[p][row], 3))))))];
  };

  /* root: where; name: of the node; context: {graph, edges (shown now), inside (names of the circuit's nodes), light(edge)}. */
  CF.panel = (root, name, { graph, edges, inside, light, enters, show }) => {
    const node = graph.nodes[name];
    if (!name || !node) {
      root.replaceChildren(el('p', { class: 'muted' }, name
        ? `${name} has no edge among those that this page carries.`
        : 'Click a node (or Tab to it and press Enter) for its scores, effects, role, backups and edges. Hover an edge for its score.'));
      return;
    }
    const shown = edges.some((edge) => edge.from === name || edge.to === name);
    const at = shown || graph.kind !== 'circuit' ? null : enters(name);
    root.replaceChildren(...[
      el('div', { class: 'row' }, el('h3', { class: 'name', id: 'selected-name' }, name),
        el('button', { type: 'button', class: 'small', onclick: () => CF.select(null), 'aria-label': 'clear the selection' }, '✕')),
      el('p', { class: 'muted' }, CF.kindOf(name, node), inside.has(name) ? '; in the circuit' : '; not in the circuit',
        shown || inside.has(name) ? '' : at === null ? '' : `; connected from the ${at} strongest edges on `,
        !shown && at !== null ? el('button', { type: 'button', class: 'small', onclick: () => show(at) }, `show ${at}`) : null),
      node.label ? el('p', null, el('strong', null, node.label)) : null,
      node.role ? el('p', null, 'Role in the known circuit: ', el('strong', null, node.role)) : null,
      node.hint ? el('p', null, 'Promotes ', el('span', { class: 'mono' }, node.hint)) : null,
      node.score !== undefined && node.score !== null ? el('p', null, 'Score ', el('strong', { class: 'num' }, CF.signed(node.score, 3)),
        el('span', { class: 'muted' }, ` ${graph.metric}`)) : null,
      effects(node, graph.metric), evidence(node), backups(name, node, graph), positions(name, graph),
      edgeList('Reads from', edges.filter((edge) => edge.to === name), (edge) => edge.from, light, graph),
      edgeList('Writes to', edges.filter((edge) => edge.from === name), (edge) => edge.to, light, graph),
    ].flat(Infinity).filter(Boolean));
  };
})();

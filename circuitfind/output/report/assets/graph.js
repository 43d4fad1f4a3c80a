/* The section of the circuit: which edges are shown, and all that one can do with them. */
(() => {
  'use strict';
  const { el } = CF;
  const DRAWN = 1200, WITH_LANES = 400, FEATURES = 250;
  const SLOTS = { head: ['q', 'k', 'v'], kv: ['k', 'v'] };

  /* a9.h6 for 9.6, L9H6, a9h6; m3 for MLP3. */
  const spelt = (text) => {
    const head = /^(?:l|a)?(\d+)\s*(?:\.\s*h?|h)\s*(\d+)$/i.exec(text), mlp = /^(?:mlp|m)\s*(\d+)$/i.exec(text);
    return head ? `a${+head[1]}.h${+head[2]}` : mlp ? `m${+mlp[1]}` : text.toLowerCase();
  };
  const bare = (name) => name.split('@')[0];

  const rowText = (row) => {
    const { rank, kind, id } = row.nodes[0];
    if (kind === 'input' || kind === 'logits') return '';
    const kinds = new Set(row.nodes.map((node) => node.kind));
    const words = kinds.has('kv') ? 'kv' : kinds.has('head') || kinds.has('fold') ? (kinds.has('mlp') ? 'block' : 'attn') : /^s/.test(id) ? 'SAE'
      : 'MLP';
    return `${words} ${rank[0]}`;
  };

  CF.section('graph', 'Circuit', (root, graph) => {
    const pruning = CF.prune(graph);
    const own = graph.own.w.length;
    // A feature graph has no ranking to prune anew: there the slider only thins out what is drawn.
    const thins = graph.kind !== 'circuit';
    const most = thins ? own : pruning.most, stops = most ? CF.stops(most, graph.curve) : [];
    const inside = new Set(pruning.edges(null).flatMap((e) => [e.from, e.to]));
    const state = { n: null, most: thins ? FEATURES : DRAWN, folded: new Set(), position: '', beside: true, matches: null, selected: null };
    let shown = { all: [], drawn: [], nodes: [] };

    /* Controls. */
    const slider = el('input', { type: 'range', min: 0, max: Math.max(0, stops.length - 1), step: 1, id: 'edges-slider',
      'aria-label': 'number of strongest edges' });
    const typed = el('input', { type: 'number', min: 1, max: most, 'aria-label': 'number of strongest edges, exactly', class: 'count' });
    const reset = el('button', { type: 'button', id: 'reset' }, thins ? 'all' : "the circuit's own");
    const told = el('p', { class: 'told', role: 'status', id: 'told' });
    const search = el('input', { type: 'search', placeholder: 'find a node: a9.h6, 9.6, L9H6, a label', 'aria-label': 'find a node', id: 'find' });
    const hits = el('span', { class: 'muted', role: 'status', id: 'hits' });
    const chooser = graph.positions ? el('select', { 'aria-label': 'position', id: 'position' }, el('option', { value: '' }, 'all positions'),
      graph.positions.map((name, i) => el('option', { value: i }, name))) : null;
    const layersFold = Object.values(graph.nodes).some((node) => node.kind === 'head')
      && el('button', { type: 'button', class: 'small', 'aria-pressed': 'false' }, 'fold heads');
    const beside = graph.backups.length ? el('button', { type: 'button', class: 'small', 'aria-pressed': 'true' }, 'backups') : null;
    const zoomOf = (words, factor, title) => el('button', { type: 'button', class: 'small', 'aria-label': title,
      onclick: () => picture.zoom(factor) }, words);
    const fit = el('button', { type: 'button', class: 'small', onclick: () => { picture.reset(); draw(); } }, 'fit');

    const byNodes = graph.level === 'node';
    const picture = CF.picture('the circuit', {
      unsigned: byNodes,
      onSelect: (id) => CF.select(id),
      onEdge: (edge) => { hovered = edge; light(); },
      onFold: (key) => { state.folded.has(key) ? state.folded.delete(key) : state.folded.add(key); draw(); },
    });
    let hovered = null;
    const side = el('aside', { class: 'panel', 'aria-label': 'the selected node', 'aria-live': 'polite', tabindex: 0 });
    // Where nodes were scored an edge has no sign, only a strength.
    const scored = (edge) => (byNodes ? `strength ${CF.number(edge.s, 3)}: the weaker of its ends`
      : `${CF.signed(edge.s, 3)} ${graph.metric}${edge.count > 1 ? `, the sum of ${edge.count} edges` : ''}`);
    CF.tip(picture.lines, () => hovered && `${hovered.title}\n${scored(hovered)}`);

    /* From the state to what is drawn. */
    const scoreAt = (edge) => {
      if (state.position === '') return edge.s;
      const row = graph.edges_at ? graph.edges_at[+state.position] : null;
      return row && edge.i !== null && edge.i < row.length ? row[edge.i] : null;
    };
    const foldOf = (name) => {
      const node = graph.nodes[name];
      const key = node.rank.join('.');
      return node.kind === 'head' && state.folded.has(key) ? `fold:${key}` : name;
    };
    const combined = (edges) => {
      const found = new Map();
      for (const edge of edges) {
        const from = foldOf(edge.from), to = foldOf(edge.to), key = `${from}>${to}<${edge.slot || ''}`;
        const last = found.get(key);
        if (!last) {
          const name = pruning.name(edge);
          found.set(key, { ...edge, from, to, name, title: from === edge.from && to === edge.to ? name
            : `${said(from)} → ${said(to)}${edge.slot ? `<${edge.slot}>` : ''}`, count: 1 });
        } else {
          last.s = (last.s || 0) + (edge.s || 0);
          last.count += 1;
        }
      }
      return [...found.values()];
    };
    const said = (id) => (id.startsWith('fold:') ? `heads of layer ${id.slice(5).split('.')[0]}` : id);

    /* What acts when others are gone: dashed, beside the circuit. */
    const ghosts = (there, edges) => {
      if (!state.beside) return [];
      const found = [], have = new Set(edges.map((edge) => `${edge.from}>${edge.to}<${edge.slot || ''}`));
      for (const { name, covers, reader, stands_in: helps } of graph.backups) {
        const [, to, slot] = /^([^<]+)(?:<([qkv])>)?$/.exec(reader) || [];
        const seen = covers.map(foldOf).filter((id) => there.has(id));
        if (!to || !there.has(foldOf(to)) || !seen.length || (foldOf(name) !== name && !there.has(foldOf(name)))) continue;
        if (!have.has(`${foldOf(name)}>${foldOf(to)}<${slot || ''}`)) found.push({ from: foldOf(name), to: foldOf(to), slot: slot || null, s: helps ? 1 : -1, ghost: 'acts' });
        for (const id of new Set(seen)) if (id !== foldOf(name)) found.push({ from: id, to: foldOf(name), slot: null, s: null, ghost: 'covers' });
      }
      return found.map((edge) => ({ ...edge, name: `${edge.ghost}:${edge.from}->${edge.to}`, title: '' }));
    };

    const nodeOf = (id, edges) => {
      const used = new Set(edges.filter((edge) => edge.to === id && edge.slot).map((edge) => edge.slot));
      if (id.startsWith('fold:')) {
        const key = id.slice(5);
        const names = [...new Set(shown.all.flatMap((e) => [e.from, e.to]))].filter((name) => foldOf(name) === id);
        return { id, kind: 'fold', rank: key.split('.').map(Number), title: CF.count(names.length, 'head'), under: '', slots: SLOTS.head, used,
          inside: false, said: said(id) };
      }
      const node = graph.nodes[id];
      const under = [node.position && `@${node.position}`, node.label || node.role || (node.hint && `→ ${node.hint}`)].filter(Boolean).join(' ');
      const ghost = !edges.some((edge) => !edge.ghost && (edge.from === id || edge.to === id));
      const score = node.score === undefined || node.score === null ? '' : `, score ${CF.signed(node.score, 2)}`;
      return {
        id, kind: node.kind, rank: node.rank, position: node.position, title: node.short || bare(id), under, slots: SLOTS[node.kind] || [], used,
          ghost,
        inside: inside.has(id), said: `${id}, ${CF.kindOf(id, node)}${under ? `, ${under}` : ''}${score}${ghost ? ', beside the circuit' : ''}`,
      };
    };

    const draw = (keep = false) => {
      const all = pruning.edges(state.n).map((edge) => ({ ...edge, s: scoreAt(edge) }));
      shown = { all };
      let edges = combined(all);
      const left = edges.length - state.most;
      if (left > 0) edges = edges.sort((a, b) => Math.abs(b.s || 0) - Math.abs(a.s || 0)).slice(0, state.most);
      const there = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
      for (const [kv, head] of graph.serves) {
        if (there.has(kv) && there.has(foldOf(head))) edges.push({ from: kv, to: foldOf(head), slot: null, s: null, ghost: 'serves',
          name: `serves:${kv}->${head}`, title: '' });
      }
      edges.push(...ghosts(there, edges));
      for (const edge of edges) for (const id of [edge.from, edge.to]) there.add(id);
      const nodes = [...there].map((id) => nodeOf(id, edges)).map((node) => ({ ...node, ...CF.nodeSize(node) }));
      const crowd = Math.min(1, Math.max(0, (edges.length - 40) / 160));
      const solid = edges.filter((edge) => edge.ghost !== 'covers');
      const layout = CF.layout(nodes, solid, { gap: 22 - 10 * crowd, between: 42 + 26 * crowd, lanes: edges.length <= WITH_LANES,
        positions: graph.positions || [...new Set(nodes.map((node) => node.position).filter(Boolean))] });
      // The same scale at every position: what does little at one is to look so.
      const weighed = state.position === '' ? edges.filter((edge) => !edge.ghost) : pruning.edges(state.n);
      const strongest = weighed.reduce((most, edge) => Math.max(most, Math.abs(edge.s || 0)), 0);
      let last = null;
      const labels = layout.rows.map((row) => {
        const key = row.nodes.some((node) => node.kind === 'head' || node.kind === 'fold') ? row.nodes[0].rank.join('.') : null;
        const text = rowText(row);
        const repeated = text === last;
        last = text;
        return { y: row.y, text: repeated ? '' : text, key: repeated ? null : key, folded: key !== null && state.folded.has(key) };
      }).filter(({ text }) => text);
      shown = { all, drawn: edges, nodes, left };
      picture.render({ nodes, edges, layout, strongest, labels, keep });
      tell();
      light();
      panel();
      CF.emit('edges', all);
    };

    /* In words. */
    const tell = () => {
      const edges = shown.all, nodes = new Set(edges.flatMap((e) => [e.from, e.to]));
      const size = `${CF.count(edges.length, 'edge')}${graph.total ? ` of ${graph.total.toLocaleString('en')}` : ''}, ${CF.count(nodes.size, 'node')}`;
      const measured = state.n === null ? ownMeasured() : sizeMeasured();
      const kept = state.n === null ? [el('strong', null, `The ${graph.kind === 'circuit' ? "circuit's" : "graph's"} own edges: `), size]
        : [el('strong', null, `The ${state.n === 1 ? 'strongest edge' : `${state.n.toLocaleString('en')} strongest edges`}: `),
          edges.length ? `${size} on a way from the input to the logits` : 'no way from the input to the logits',
          `, ${byNodes ? 'strength' : '|score|'} ≥ ${CF.short(Math.abs(graph.edges.s[state.n - 1]))}`];
      told.replaceChildren(...kept, '. ', measured,
        shown.left > 0 ? ` The strongest ${state.most.toLocaleString('en')} are drawn.` : '',
        state.position !== ''
          ? ` Widths are the scores at ${graph.positions[+state.position]}${graph.edges_at ? '' : ' of nodes only: edges were not scored apart'}.`
            : '');
      reset.setAttribute('aria-pressed', String(thins ? state.most >= own : state.n === null));
    };
    const ownMeasured = () => {
      const found = (CF.data.verdict && CF.data.verdict.evaluations) || [];
      return found.length ? `Faithfulness ${CF.interval(found[0].faithfulness)} under ${found[0].ablation} ablation.`
        : 'Its faithfulness was not measured.';
    };
    const sizeMeasured = () => {
      const found = CF.measured(graph.curve, state.n);
      if (!found) return 'Faithfulness was not measured along this ranking.';
      const value = `faithfulness ${CF.interval(found.faithfulness)} under ${graph.curve.ablation} ablation on ${CF.count(graph.curve.n_prompts, 'prompt')}`;
      return found.exact ? `Measured: ${value}.`
        : `Not measured at this size; the nearest that was, ${found.edges.toLocaleString('en')} strongest edges `
          + `(${found.connected.toLocaleString('en')} connected), has ${value}.`;
    };

    const panel = () => CF.panel(side, state.selected, { graph, edges: shown.all, inside, enters: pruning.enters, show: (n) => setSize(n),
      light: (edge) => { hovered = edge && shown.drawn.find((one) => one.name === pruning.name(edge)) || null; light(); } });
    const light = () => picture.light({ selected: state.selected && !state.selected.startsWith('fold:') ? foldOf(state.selected) : state.selected,
      edge: hovered, matches: state.matches });

    /* Sizes. */
    const near = (n) => stops.reduce((best, stop, i) => (Math.abs(stop - n) < Math.abs(stops[best] - n) ? i : best), 0);
    const setSize = (n) => {
      const size = n === null ? null : Math.max(1, Math.min(most, Math.round(n)));
      if (thins) state.most = size === null ? own : size;
      else state.n = size;
      const at = size === null ? Math.min(own, most) : size;
      if (stops.length) {
        slider.value = near(at);
        slider.setAttribute('aria-valuetext', size === null ? (thins ? 'all edges' : `the circuit's own ${own} edges`) : `${size} strongest edges`);
        typed.value = at;
      }
      draw();
      find();
    };
    slider.addEventListener('input', () => setSize(stops[+slider.value]));
    typed.addEventListener('change', () => Number.isFinite(typed.valueAsNumber) && setSize(typed.valueAsNumber));
    reset.addEventListener('click', () => setSize(null));
    picture.element.addEventListener('keydown', (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way || !stops.length || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      setSize(stops[Math.max(0, Math.min(stops.length - 1, +slider.value + way))]);
    });

    /* Search. */
    const find = () => {
      const text = search.value.trim();
      state.matches = null;
      hits.textContent = '';
      if (text) {
        const name = spelt(text), words = text.toLowerCase();
        const known = Object.keys(graph.nodes);
        const exact = known.filter((one) => bare(one) === name);
        const matching = exact.length ? exact : known.filter((one) => {
          const { label, role, hint } = graph.nodes[one];
          return [one, label, role, hint].some((part) => part && part.toLowerCase().includes(words));
        });
        const there = new Set(shown.nodes.map((node) => node.id));
        const seen = matching.filter((one) => there.has(foldOf(one)));
        state.matches = new Set(seen.map(foldOf));
        hits.textContent = seen.length ? `${CF.count(seen.length, 'node')} lit: ${seen.slice(0, 4).join(', ')}${seen.length > 4 ? ', …' : ''}`
          : matching.length ? `${matching.slice(0, 3).join(', ')} not among these edges; Enter tells more` : 'no such node on this page';
        search.found = seen[0] || matching[0] || null;
      }
      light();
    };
    search.addEventListener('input', find);
    search.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && search.value.trim() && search.found) CF.select(search.found);
    });

    /* The rest. */
    if (chooser) chooser.addEventListener('change', () => { state.position = chooser.value; draw(true); });
    if (beside) {
      beside.addEventListener('click', () => {
        state.beside = !state.beside;
        beside.setAttribute('aria-pressed', String(state.beside));
        draw();
      });
    }
    if (layersFold) layersFold.addEventListener('click', () => {
      const heads = Object.values(graph.nodes).filter((node) => node.kind === 'head').map((node) => node.rank.join('.'));
      state.folded = state.folded.size ? new Set() : new Set(heads);
      draw();
      layersFold.setAttribute('aria-pressed', String(state.folded.size > 0));
    });
    CF.on('select', (name) => {
      state.selected = name;
      if (name && name.startsWith('fold:')) {
        state.folded.delete(name.slice(5));
        state.selected = null;
        draw();
        return;
      }
      light();
      panel();
    });
    document.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      if (search.value) { search.value = ''; find(); }
      CF.select(null);
    });

    root.append(...[
      stops.length ? el('div', { class: 'sizes' },
        el('label', { for: 'edges-slider' }, thins ? 'edges drawn' : 'strongest edges'),
        el('div', { class: 'track' }, slider, thins ? null : el('span',
          { class: 'mark', style: { left: `calc(8px + (100% - 16px) * ${near(Math.min(own, most)) / Math.max(1, stops.length - 1)})` } },
            `▲ circuit (${own})`)),
        typed, el('span', { class: 'muted' }, thins ? `of ${own.toLocaleString('en')}`
          : `of ${graph.scored.toLocaleString('en')} scored${most < graph.scored ? `, ${most.toLocaleString('en')} on this page` : ''}`), reset)
            : null,
      told,
      el('div', { class: 'bar' }, search, hits, chooser, layersFold, beside,
        el('span', { class: 'zooms' }, zoomOf('−', 1.25, 'zoom out'), zoomOf('+', 0.8, 'zoom in'), fit)),
      el('div', { class: 'stage' }, picture.element, side),
      legend(graph),
    ].filter(Boolean));
    CF.shown = { state, names: () => shown.all.map(pruning.name), setSize, pruning };
    setSize(thins ? Math.min(own, FEATURES) : null);
  });

  const legend = (graph) => {
    const kinds = new Set(Object.values(graph.nodes).map((node) => node.kind));
    const chip = (look, words) => el('span', { class: 'chip' }, el('i', { class: look }), words);
    return el('p', { class: 'legend muted' }, [
      kinds.has('head') && chip('head', 'attention head, read through q, k, v'), kinds.has('mlp') && chip('mlp', 'MLP'),
        kinds.has('neuron') && chip('neuron', 'neuron'),
      kinds.has('feature') && chip('feature', 'feature'), (kinds.has('error') || kinds.has('rest')) && chip('rest', 'error or rest'),
      graph.level === 'node' ? chip('line-none', 'nodes were scored: an edge is as strong as the weaker of its ends')
        : [chip('line-pos', 'positive score: helps'), chip('line-neg', 'negative: works against the answer')],
      graph.backups.length && chip('line-dash', 'acts when others are removed (not counted in the circuit)'),
      el('span', null, 'Drag nodes; drag the ground or ctrl + wheel to move and zoom; click a layer to fold it.'),
    ].filter(Boolean));
  };
})();

/* Pruning as circuit/curve.circuits does it: the first n edges of the ranking, and of these what lies on a way from the input
   (or an error that reads nothing) to the logits. A head is reached when any of its inputs is. */
(() => {
  'use strict';

  const parse = (reader) => {
    const [, node, slot, at] = /^([^<@]+)(?:<([qkv])>)?(@.*)?$/.exec(reader);
    return { node: node + (at || ''), slot: slot || null };
  };

  CF.prune = (graph) => {
    const { w, r } = graph.edges;
    const logits = graph.readers.map((name) => name === 'logits' || name.startsWith('logits@'));

    /* Which of the edges i < n are connected, as a list of their indices. */
    const strongest = (n) => {
      const count = Math.min(n, w.length);
      const out = graph.writers.map(() => []);
      for (let i = 0; i < count; i++) out[w[i]].push(i);
      const alive = new Uint8Array(graph.writers.length);
      const fed = new Uint8Array(graph.readers.length);
      for (const row of graph.sources) alive[row] = 1;
      for (let row = 0; row < alive.length; row++) {
        if (!alive[row] && graph.reads[row].some((column) => fed[column])) alive[row] = 1;
        if (alive[row]) for (const i of out[row]) fed[r[i]] = 1;
      }
      const useful = Uint8Array.from(logits, Number);
      const kept = [];
      for (let row = alive.length - 1; row >= 0; row--) {
        if (!alive[row]) continue;
        const good = out[row].filter((i) => useful[r[i]]);
        if (!good.length) continue;
        kept.push(...good);
        for (const column of graph.reads[row]) useful[column] = 1;
      }
      return kept.sort((a, b) => a - b);
    };

    /* The edges of a state: {w, r (names), node, slot, s, i (place in the ranking)}; n is null for the circuit's own. */
    const readers = graph.readers.map(parse);
    const place = new Map(w.map((row, i) => [row * graph.readers.length + r[i], i]));
    const edge = (row, column, score, i) => ({
      from: graph.writers[row], reader: graph.readers[column], to: readers[column].node, slot: readers[column].slot, s: score, i,
    });
    const own = graph.own.w.map((row, k) => {
      const column = graph.own.r[k];
      return edge(row, column, graph.own.s[k], place.get(row * graph.readers.length + column) ?? null);
    });
    const edges = (n) => (n === null ? own : strongest(n).map((i) => edge(w[i], r[i], graph.edges.s[i], i)));

    /* The fewest edges with which a node is connected; null where none of those carried does it. Circuits are nested. */
    const enters = (name) => {
      const has = (n) => edges(n).some((e) => e.from === name || e.to === name);
      if (!has(w.length)) return null;
      let low = 0, high = w.length;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (has(middle)) high = middle;
        else low = middle;
      }
      return high;
    };
    return { strongest, edges, enters, most: w.length, name: (e) => `${e.from}->${e.reader}` };
  };

  /* Where a size was measured: exactly, or at the nearest size by ratio; null without a curve. */
  CF.measured = (curve, n) => {
    if (!curve || !curve.edges.length) return null;
    let best = 0;
    curve.edges.forEach((size, i) => {
      if (Math.abs(Math.log(size / n)) < Math.abs(Math.log(curve.edges[best] / n))) best = i;
    });
    return { edges: curve.edges[best], connected: curve.connected[best], faithfulness: curve.faithfulness[best], exact: curve.edges[best] === n };
  };

  /* Stops of the slider: every number of edges at first, then steps of about a twentieth, and every size that was measured. */
  CF.stops = (most, curve) => {
    const found = new Set([most]);
    for (let n = 1; n < most; n = Math.max(n + 1, Math.round(n * 1.05))) found.add(n);
    for (const n of curve ? curve.edges : []) if (n >= 1 && n <= most) found.add(n);
    return [...found].sort((a, b) => a - b);
  };
})();

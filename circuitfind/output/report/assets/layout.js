/* A layered layout: rows by depth, the order in a row by the middle of what a node is joined to, room for long edges.

   An edge that passes rows runs through one lane in each, which all edges out of its sender share. */
(() => {
  'use strict';
  const LANE = 7;
  const SWEEPS = 10;
  const ROW = 18;
  const TALL = 760, WIDE = 0.7;

  /* Least squares with least distances: pools neighbours that would overlap (isotonic regression). */
  const spread = (wanted, weights, gaps) => {
    const offsets = [0];
    for (let i = 1; i < wanted.length; i++) offsets.push(offsets[i - 1] + gaps[i - 1]);
    const pools = [];
    wanted.forEach((want, i) => {
      let pool = { sum: (want - offsets[i]) * weights[i], weight: weights[i], count: 1 };
      while (pools.length && pools.at(-1).sum / pools.at(-1).weight > pool.sum / pool.weight) {
        const last = pools.pop();
        pool = { sum: last.sum + pool.sum, weight: last.weight + pool.weight, count: last.count + pool.count };
      }
      pools.push(pool);
    });
    return pools.flatMap((pool) => Array(pool.count).fill(pool.sum / pool.weight)).map((x, i) => x + offsets[i]);
  };

  const rowsOf = (nodes) => {
    const byRank = new Map();
    for (const node of nodes) {
      const key = node.rank.join('.');
      if (!byRank.has(key)) byRank.set(key, []);
      byRank.get(key).push(node);
    }
    const ranks = [...byRank.values()].sort((a, b) => a[0].rank[0] - b[0].rank[0] || a[0].rank[1] - b[0].rank[1]);
    return ranks.flatMap((all) => {
      const count = Math.ceil(all.length / ROW), size = Math.ceil(all.length / count);
      return Array.from({ length: count }, (_, i) => all.slice(i * size, (i + 1) * size));
    });
  };

  /* nodes: {id, rank: [layer, step], w, h, position?}; edges: {from, to}. Returns rows, x and y of each node (its middle), the
     lanes of each sender ({row: x}), width and height. */
  CF.layout = (nodes, edges, { gap = 16, between = 44, lanes = true, positions = [] } = {}) => {
    const rows = rowsOf(nodes);
    const at = new Map();
    rows.forEach((row, k) => row.forEach((node) => at.set(node.id, k)));
    const items = rows.map((row) => row.map((node) => ({ id: node.id, w: node.w, column: positions.indexOf(node.position), links: [] })));
    const known = new Map();
    items.forEach((row, k) => row.forEach((item) => known.set(`${k}:${item.id}`, item)));
    const lane = (id, k) => {
      const key = `${k}:lane:${id}`;
      if (!known.has(key)) {
        const item = { id: null, of: id, w: LANE, column: known.get(`${at.get(id)}:${id}`).column, links: [] };
        known.set(key, item);
        items[k].push(item);
      }
      return known.get(key);
    };
    const joined = new Set();
    const join = (a, b, ka, weight) => {
      const key = `${ka}:${a.id ?? `lane:${a.of}`}:${b.id ?? `lane:${b.of}`}`;
      if (joined.has(key)) return;
      joined.add(key);
      a.links.push({ item: b, up: true, weight });
      b.links.push({ item: a, up: false, weight });
    };
    for (const { from, to } of edges) {
      const a = at.get(from), b = at.get(to);
      if (a === undefined || b === undefined || b <= a) continue;
      let last = known.get(`${a}:${from}`);
      for (let k = a + 1; k < b && lanes; k++) {
        const next = lane(from, k);
        join(last, next, k - 1, last.id === null ? 6 : 2);
        last = next;
      }
      join(last, known.get(`${b}:${to}`), b - 1, 1);
    }

    // The order in each row.
    const pack = (row) => {
      let x = 0;
      for (const item of row) {
        item.x = x + item.w / 2;
        x += item.w + (item.id === null ? 3 : gap);
      }
      for (const item of row) item.x -= x / 2;
    };
    items.forEach(pack);
    const mean = (item, up) => {
      const links = item.links.filter((link) => up === null || link.up === up);
      const weight = links.reduce((sum, link) => sum + link.weight, 0);
      return weight ? links.reduce((sum, link) => sum + link.weight * link.item.x, 0) / weight : null;
    };
    for (let sweep = 0; sweep < SWEEPS; sweep++) {
      const up = sweep % 2 === 1;
      for (const row of up ? [...items].reverse() : items) {
        const key = new Map(row.map((item) => [item, mean(item, up) ?? item.x]));
        row.sort((a, b) => a.column - b.column || key.get(a) - key.get(b));
        pack(row);
      }
    }
    // The places, with that order.
    for (let sweep = 0; sweep < SWEEPS; sweep++) {
      for (const row of sweep % 2 ? [...items].reverse() : items) {
        if (!row.length) continue;
        const gaps = row.slice(1).map((item, i) => (item.w + row[i].w) / 2 + (item.id === null && row[i].id === null ? 3
          : gap / (item.id === null || row[i].id === null ? 2 : 1)));
        const weights = row.map((item) => 1 + item.links.length + (item.id === null ? 2 : 0));
        const placed = spread(row.map((item) => mean(item, null) ?? item.x), weights, gaps);
        row.forEach((item, i) => (item.x = placed[i]));
      }
    }
    const left = Math.min(0, ...items.flat().map((item) => item.x - item.w / 2));
    const right = Math.max(0, ...items.flat().map((item) => item.x + item.w / 2));

    // From the top down; many rows stand closer, as far as edges can still bend, few wide ones apart.
    const heights = rows.map((row) => Math.max(...row.map((node) => node.h)));
    const room = (TALL - heights.reduce((a, b) => a + b, 0)) / Math.max(1, rows.length - 1);
    const wide = (WIDE * (right - left) - heights.reduce((a, b) => a + b, 0)) / Math.max(1, rows.length - 1);
    between = Math.max(26, Math.min(between, room), Math.min(wide, 150));
    const found = { rows: [], x: new Map(), y: new Map(), lanes: new Map(), row: at, width: right - left, height: 0 };
    let y = 0;
    for (let k = rows.length - 1; k >= 0; k--) {
      const height = heights[k];
      for (const node of rows[k]) found.y.set(node.id, y + height / 2);
      found.rows[k] = { nodes: rows[k], y: y + height / 2, height };
      for (const item of items[k]) {
        if (item.id !== null) found.x.set(item.id, item.x - left);
        else {
          if (!found.lanes.has(item.of)) found.lanes.set(item.of, new Map());
          found.lanes.get(item.of).set(k, item.x - left);
        }
      }
      y += height + between;
    }
    found.height = y - between;
    return found;
  };
})();

/* The picture of a circuit: nodes that can be dragged, edges that light up, layers that fold; it is panned and zoomed. */
(() => {
  'use strict';
  const { svg } = CF;
  const THIN = 0.7, THICK = 5.5, LEFT = 64, PAD = 14, MOVED = 4;
  const LOOK = { input: 'input', logits: 'input', head: 'head', kv: 'kv', mlp: 'mlp', neuron: 'neuron', feature: 'feature', rest: 'rest',
    error: 'rest', fold: 'head' };

  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  /* What a node takes: its lines and its inputs decide. */
  CF.nodeSize = (node) => {
    const longest = Math.max(node.title.length * 7.2, node.under ? cut(node.under, 22).length * 5 : 0);
    const ports = node.slots.length ? 18 * node.slots.length + 8 : 0;
    return { w: Math.max(46, longest + 18, ports), h: 24 + (node.under ? 11 : 0) + (node.slots.length ? 11 : 0) };
  };

  CF.picture = (label, { onSelect, onEdge, onFold, unsigned = false }) => {
    const layers = svg('g', { class: 'layers' }), links = svg('g', { class: 'links' }), lines = svg('g', { class: 'lines' }),
      boxes = svg('g', { class: 'boxes' });
    const heads = ['pos', 'neg', 'unscored'].map((sign) => svg('marker', {
      id: `arrow-${sign}`, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: 'userSpaceOnUse', orient: 'auto',
    }, svg('path', { d: 'M0,0.8 L8,4 L0,7.2 z', fill: `var(--${sign})` })));
    const picture = svg('svg', { class: 'circuit', role: 'group', 'aria-label': label, tabindex: '-1' }, svg('defs', null, heads), layers, links,
      lines, boxes);
    let drawn = null, tallest = 0;
    const offsets = new Map();
    const view = { x: 0, y: 0, w: 100, h: 100 };
    let whole = { ...view };

    const place = (id) => {
      const { dx, dy } = offsets.get(id) || { dx: 0, dy: 0 };
      return { x: LEFT + drawn.layout.x.get(id) + dx, y: drawn.layout.y.get(id) + dy };
    };
    /* Where an edge enters: the middle, or the input of a head. */
    const port = (node, slot) => {
      const at = node.slots.indexOf(slot);
      return at < 0 ? 0 : (at - (node.slots.length - 1) / 2) * 18;
    };
    const path = (edge) => {
      const from = drawn.nodes.get(edge.from), to = drawn.nodes.get(edge.to), a = place(edge.from), b = place(edge.to);
      let x = a.x, y = a.y - from.h / 2;
      let d = `M${x.toFixed(1)},${y.toFixed(1)}`;
      const bend = (nx, ny) => {
        const half = Math.max(14, Math.abs(y - ny) / 2);
        d += `C${x.toFixed(1)},${(y - half).toFixed(1)} ${nx.toFixed(1)},${(ny + half).toFixed(1)} ${nx.toFixed(1)},${ny.toFixed(1)}`;
        [x, y] = [nx, ny];
      };
      const lanes = drawn.layout.lanes.get(edge.from);
      for (let k = drawn.layout.row.get(edge.from) + 1; lanes && k < drawn.layout.row.get(edge.to); k++) {
        if (!lanes.has(k)) continue;
        const row = drawn.layout.rows[k];
        bend(LEFT + lanes.get(k), row.y + row.height / 2);
        y = row.y - row.height / 2;
        d += `L${x.toFixed(1)},${y.toFixed(1)}`;
      }
      bend(b.x + port(to, edge.slot), b.y + to.h / 2 + 1);
      return d;
    };
    const sign = (score, ghost) => ((unsigned && !ghost) || score === null || score === undefined || score === 0 ? 'unscored' : score < 0 ? 'neg' : 'pos');
    const line = (edge) => {
      const share = drawn.strongest > 0 ? Math.min(1, Math.abs(edge.s || 0) / drawn.strongest) : 0;
      const width = edge.ghost ? 1.3 : THIN + (THICK - THIN) * Math.sqrt(share);
      const group = svg('g', { class: `edge ${edge.ghost || ''}`, 'data-edge': edge.name },
        svg('path', { class: 'line', stroke: `var(--${sign(edge.s, edge.ghost)})`, 'stroke-width': width.toFixed(2),
          opacity: edge.ghost ? 0.8 : (0.4 + 0.55 * Math.sqrt(share)).toFixed(2),
            'marker-end': edge.ghost === 'covers' || edge.ghost === 'serves' ? null : `url(#arrow-${sign(edge.s, edge.ghost)})` }),
        edge.ghost ? null : svg('path', { class: 'hit' }));
      edge.element = group;
      group.edge = edge;
      bendTo(edge);
      return group;
    };
    const bendTo = (edge) => {
      const d = path(edge);
      for (const child of edge.element.children) child.setAttribute('d', d);
    };

    const box = (node) => {
      const look = LOOK[node.kind] || 'rest';
      const round = ['head', 'input', 'logits', 'feature', 'kv', 'fold'].includes(node.kind) ? 7 : 1;
      const group = svg('g', {
        class: `node ${look} ${node.inside ? 'inside' : ''} ${node.ghost ? 'ghost' : ''} ${node.kind === 'fold' ? 'fold' : ''}`, 'data-node': node.id,
        tabindex: 0, role: 'button', 'aria-label': node.said, 'aria-pressed': 'false',
      }, svg('rect', { x: -node.w / 2, y: -node.h / 2, width: node.w, height: node.h, rx: round,
        'stroke-dasharray': node.ghost || node.kind === 'kv' || node.kind === 'error' ? '4 3' : null }),
      svg('text', { class: 'title', y: -node.h / 2 + 16 }, node.title),
      node.under ? svg('text', { class: 'under', y: -node.h / 2 + 27 }, cut(node.under, 22)) : null,
      node.slots.map((slot) => svg('text', { class: `slot ${node.used.has(slot) ? 'used' : ''}`, x: port(node, slot), y: node.h / 2 - 4 }, slot)));
      node.element = group;
      return group;
    };
    const move = (id) => {
      const { x, y } = place(id);
      drawn.nodes.get(id).element.setAttribute('transform', `translate(${x.toFixed(1)},${y.toFixed(1)})`);
    };

    const show = () => {
      picture.setAttribute('viewBox', `${view.x} ${view.y} ${view.w} ${view.h}`);
      picture.classList.toggle('zoomed', view.w < 0.98 * whole.w);
    };
    const fit = () => {
      // Never larger than life: a small circuit stays a small picture in the middle.
      const { width, height } = picture.getBoundingClientRect();
      const w = Math.max(drawn.layout.width + LEFT + 2 * PAD, (width || 700) / 1.35),
        h = Math.max(drawn.layout.height + 2 * PAD, (height || 500) / 1.35);
      Object.assign(view, { x: (drawn.layout.width + LEFT - w) / 2, y: (drawn.layout.height - h) / 2, w, h });
      whole = { ...view };
      show();
    };
    const point = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    const zoom = (factor, event) => {
      const w = Math.min(whole.w * 2, Math.max(80, view.w * factor)), real = w / view.w;
      const at = event ? point(event) : { x: view.x + view.w / 2, y: view.y + view.h / 2 };
      Object.assign(view, { x: at.x - (at.x - view.x) * real, y: at.y - (at.y - view.y) * real, w, h: view.h * real });
      show();
    };

    /* nodes: {id, title, under, kind, slots, used, inside, ghost, said, w, h}; edges: {from, to, slot, s, name, ghost?}. */
    const render = ({ nodes, edges, layout, strongest, labels, keep }) => {
      drawn = { nodes: new Map(nodes.map((node) => [node.id, node])), edges, layout, strongest };
      const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.node : null;
      const order = [...nodes].sort((a, b) => layout.row.get(a.id) - layout.row.get(b.id) || layout.x.get(a.id) - layout.x.get(b.id));
      layers.replaceChildren(...labels.map(({ y, text, key, folded }) => {
        const group = svg('g', {
          class: 'layer', transform: `translate(4,${y})`, 'data-layer': key,
          ...(key ? { tabindex: 0, role: 'button', 'aria-expanded': String(!folded),
            'aria-label': `${text}: ${folded ? 'unfold' : 'fold'} its heads into one node` } : {}),
        }, svg('text', { y: 4 }, key ? `${folded ? '▸' : '▾'} ${text}` : text));
        return group;
      }));
      boxes.replaceChildren(...order.map(box));
      nodes.forEach((node) => move(node.id));
      const weak = [...edges].sort((a, b) => Math.abs(a.s || 0) - Math.abs(b.s || 0));
      links.replaceChildren(...weak.filter((edge) => edge.ghost).map(line));
      lines.replaceChildren(...weak.filter((edge) => !edge.ghost).map(line));
      // As high as it needs to be, and never lower than it was: what stands below is not to jump about.
      const scale = Math.min(1.25, (picture.clientWidth || 700) / (layout.width + LEFT + 2 * PAD));
      tallest = Math.max(tallest, scale * (layout.height + 2 * PAD));
      picture.style.height = `clamp(20rem, ${Math.round(tallest)}px, 76vh)`;
      if (!keep) fit();
      if (focused && drawn.nodes.has(focused)) drawn.nodes.get(focused).element.focus({ preventScroll: true });
    };

    /* Dragging, panning, clicking. */
    let grip = null;
    picture.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      const node = event.target.closest('.node');
      if (!node && event.target.closest('.layer')) return;
      if (!node && event.pointerType === 'touch' && !picture.classList.contains('zoomed')) return;
      const id = node ? node.dataset.node : null;
      grip = { id, from: point(event), start: id ? { ...(offsets.get(id) || { dx: 0, dy: 0 }) } : { x: view.x, y: view.y }, far: false,
        at: [event.clientX, event.clientY] };
    });
    const dragged = (event) => {
      if (!grip) return;
      if (!grip.far && Math.hypot(event.clientX - grip.at[0], event.clientY - grip.at[1]) < MOVED) return;
      if (!grip.far) {
        grip.far = true;
        picture.setPointerCapture(event.pointerId);
        picture.classList.add('dragging');
        CF.hideTip();
      }
      const now = point(event);
      if (grip.id) {
        offsets.set(grip.id, { dx: grip.start.dx + now.x - grip.from.x, dy: grip.start.dy + now.y - grip.from.y });
        move(grip.id);
        for (const edge of drawn.edges) if (edge.from === grip.id || edge.to === grip.id) bendTo(edge);
      } else {
        Object.assign(view, { x: view.x - (now.x - grip.from.x), y: view.y - (now.y - grip.from.y) });
        show();
      }
      event.preventDefault();
    };
    const dropped = () => {
      picture.classList.remove('dragging');
      if (grip && grip.far) {
        // The click that follows a drag is none.
        picture.addEventListener('click', (event) => event.stopPropagation(), { capture: true, once: true });
        setTimeout(() => picture.dispatchEvent(new Event('click')), 0);
      }
      grip = null;
    };
    // A finger on a node drags it; elsewhere it scrolls the page, unless there is more of the picture to see.
    picture.addEventListener('touchmove', (event) => grip && event.preventDefault(), { passive: false });
    picture.addEventListener('pointermove', dragged);
    picture.addEventListener('pointerup', dropped);
    picture.addEventListener('pointercancel', dropped);
    picture.addEventListener('wheel', (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1 / 1.15 : 1.15, event);
    }, { passive: false });
    const press = (target, event) => {
      const node = target.closest('.node'), layer = target.closest('.layer');
      if (node) onSelect(node.dataset.node);
      else if (layer && layer.dataset.layer) onFold(layer.dataset.layer);
      else if (event.type === 'click' && event.isTrusted) onSelect(null);
    };
    picture.addEventListener('click', (event) => press(event.target, event));
    picture.addEventListener('keydown', (event) => {
      if ((event.key === 'Enter' || event.key === ' ') && event.target.closest('.node, .layer')) {
        event.preventDefault();
        press(event.target, event);
      }
    });
    lines.addEventListener('pointerover', (event) => {
      const group = event.target.closest('.edge');
      if (group) onEdge(group.edge);
    });
    lines.addEventListener('pointerout', () => onEdge(null));

    /* Lights: the chosen node with its edges, an edge, what a search found. */
    const light = ({ selected = null, edge = null, matches = null }) => {
      for (const [id, node] of drawn.nodes) {
        node.element.classList.toggle('selected', id === selected);
        node.element.setAttribute('aria-pressed', String(id === selected));
        node.element.classList.toggle('match', Boolean(matches && matches.has(id)));
        node.element.classList.toggle('dim', Boolean(matches && !matches.has(id)));
      }
      for (const one of drawn.edges) {
        const lit = one === edge || (one.from === selected || one.to === selected);
        one.element.classList.toggle('lit', Boolean(edge ? one === edge : selected && lit));
        one.element.classList.toggle('dim', Boolean(edge ? one !== edge && !lit : selected ? !lit : matches));
      }
    };
    const center = (id) => {
      const { x, y } = place(id);
      Object.assign(view, { x: x - view.w / 2, y: y - view.h / 2 });
      show();
    };
    const element = (id) => drawn.nodes.get(id)?.element;
    return { element: picture, render, zoom, fit, light, center, node: element, lines, boxes, reset: () => offsets.clear(),
      moved: () => offsets.size > 0 };
  };
})();

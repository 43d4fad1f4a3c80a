(() => {
  'use strict';
  const { el } = CF;
  const FIRST = 200;

  const text = (value) => (value === null || value === undefined ? '' : typeof value === 'boolean' ? (value ? 'yes' : 'no') : String(value));

  /* A field of CSV; a leading sign that a spreadsheet would take for a formula is quoted out of its way. */
  const field = (value) => {
    if (typeof value === 'number') return String(value);
    let shown = text(value);
    if (/^ *[=+@\t\r\n＝＋－＠-]/.test(shown)) shown = `'${shown}`;
    return /[",\r\n]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
  };
  CF.csv = (columns, rows) =>
    [columns.map((c) => field(c.title)), ...rows.map((row) => columns.map((c) => field(c.value(row))))]
      .map((line) => line.join(',')).join('\r\n') + '\r\n';

  const compare = (a, b) => {
    const none = (x) => x === null || x === undefined || x === '';
    if (none(a) || none(b)) return none(a) - none(b);
    return typeof a === 'number' && typeof b === 'number' ? a - b : text(a).localeCompare(text(b), 'en', { numeric: true });
  };

  /* A table that sorts by a click on a heading, filters by words and is downloaded as CSV.
     columns: {title, value(row), cell(row)?, num?, tip?, size? (sort by magnitude)}; options: {name, filter, look(row)?, caption,
     extra (more controls), keep(row)?}. Returns {draw, rows()}: draw after `keep` changed. */
  CF.table = (root, columns, rows, { name, filter = true, look, caption, extra = [], keep = () => true } = {}) => {
    let order = null;
    let down = false;
    let all = false;
    const search = el('input', { type: 'search', placeholder: 'filter', 'aria-label': `filter ${caption || name || 'rows'}` });
    const told = el('span', { class: 'muted', role: 'status' });
    const more = el('button', { type: 'button', class: 'small', hidden: true }, 'show all');
    const body = el('tbody');
    const heads = columns.map((column, i) => {
      const button = el('button', { type: 'button' }, column.title);
      if (column.tip) CF.tip(button, () => column.tip);
      button.addEventListener('click', () => {
        down = order === i ? !down : Boolean(column.num);
        order = i;
        draw();
      });
      return el('th', { scope: 'col', class: column.num ? 'num' : null }, button);
    });
    const found = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kept = rows.filter((row) => {
        if (!keep(row)) return false;
        if (!words.length) return true;
        const whole = columns.map((c) => text(c.value(row))).join('\u0000').toLowerCase();
        return words.every((word) => whole.includes(word));
      });
      if (order !== null) {
        const { value, size } = columns[order];
        const key = size ? (row) => (value(row) === null || value(row) === undefined ? null : Math.abs(value(row))) : value;
        const empty = (x) => x === null || x === undefined;
        kept.sort((a, b) => (empty(key(a)) || empty(key(b)) ? compare(key(a), key(b)) : (down ? -1 : 1) * compare(key(a), key(b))));
      }
      return kept;
    };
    const draw = () => {
      const kept = found();
      const shown = all ? kept : kept.slice(0, FIRST);
      heads.forEach((head, i) => {
        if (i === order) head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        else head.removeAttribute('aria-sort');
      });
      body.replaceChildren(...shown.map((row) => el('tr', { class: look ? look(row) : null },
        columns.map((c) => el('td', { class: c.num ? 'num' : null }, c.cell ? c.cell(row) : text(c.value(row)))))));
      told.textContent = kept.length === rows.length ? CF.count(rows.length, 'row') : `${kept.length} of ${CF.count(rows.length, 'row')}`;
      more.hidden = shown.length === kept.length;
      more.textContent = `show all ${kept.length.toLocaleString('en')}`;
    };
    more.addEventListener('click', () => {
      all = true;
      draw();
    });
    search.addEventListener('input', draw);
    root.append(
      !filter && !name && !extra.length ? '' : el('div', { class: 'bar' }, filter ? search : null, extra, told,
        name ? el('button', { type: 'button', class: 'small', onclick: () => CF.download(`${name}.csv`, CF.csv(columns, found())) }, 'download CSV')
          : null),
      el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption || name || 'table' },
        el('table', { 'aria-label': caption || name }, el('thead', null, el('tr', null, heads)), body)),
      more,
    );
    draw();
    return { draw, rows: found };
  };
})();

/* A table with more filters than words: a choice for a column with few values, a least or a greatest value for numbers. */
(() => {
  'use strict';
  const { el } = CF;

  document.head.append(el('style', {}, `
    .listing .scroll { max-height: none; } .listing td { overflow-wrap: break-word; max-width: 19rem; padding-inline: 0.45rem; }
    .listing th { padding-inline: 0.45rem; } .listing label { display: inline-flex; gap: 0.35rem; align-items: center; }
    .listing input[type="number"] { width: 5.2rem; } .listing select { max-width: 12rem; }
    .listing .whole { white-space: nowrap; } .listing .broken { overflow-wrap: anywhere; min-width: 11rem; }
  `));

  const absent = (value) => value === null || value === undefined || value === '';

  /* columns: those of CF.table, with `choose` (a choice of its values), `limit` ('least' or 'most'), `always` (shown even where
     nothing is known). */
  CF.listing = (root, wanted, rows, { caption, name } = {}) => {
    const columns = wanted.filter((column) => column.always || rows.some((row) => !absent(column.value(row))));
    const passes = new Map();
    let table = null;
    const put = (column, test) => {
      if (test) passes.set(column, test);
      else passes.delete(column);
      table.draw();
    };
    const choice = (column) => {
      const values = [...new Set(rows.map(column.value).filter((value) => !absent(value)).map(String))];
      if (values.length < 2) return null;
      values.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
      const select = el('select', {
        'data-filter': column.title,
        onchange: () => put(`choice ${column.title}`, select.value === '' ? null : (row) => String(column.value(row)) === select.value),
      }, el('option', { value: '' }, 'all'), values.map((value) => el('option', { value }, value)));
      return el('label', {}, column.title, select);
    };
    const limit = (column) => {
      const most = column.limit === 'most';
      const input = el('input', {
        type: 'number', step: 'any', 'data-filter': column.title,
        oninput: () => {
          const end = Number.parseFloat(input.value);
          put(`limit ${column.title}`, Number.isNaN(end) ? null : (row) => {
            const value = column.value(row);
            return !absent(value) && (most ? value <= end : value >= end);
          });
        },
      });
      return el('label', {}, `${column.title} ${most ? '≤' : '≥'}`, input);
    };
    const extra = columns.flatMap((column) => [column.choose ? choice(column) : null, column.limit ? limit(column) : null]).filter(Boolean);
    const box = el('div', { class: 'listing' });
    root.append(box);
    table = CF.table(box, columns, rows, { name, caption, extra, keep: (row) => [...passes.values()].every((test) => test(row)) });
  };

  /* What several listings show in a cell. */
  CF.cells = {
    yes: (value) => (absent(value) ? '' : value ? 'yes' : 'no'),
    seconds: (s) => (absent(s) ? '' : s < 120 ? `${CF.number(s, 1)} s` : s < 7200 ? `${CF.number(s / 60, 1)} min` : `${CF.number(s / 3600, 1)} h`),
    count: (n) => (absent(n) ? '' : n.toLocaleString('en')),
    whole: (content, look) => el('span', { class: look ? `whole ${look}` : 'whole' }, content),
  };
})();

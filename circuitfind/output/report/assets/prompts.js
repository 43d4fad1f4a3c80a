(() => {
  'use strict';
  const { el } = CF;
  const TITLES = {
    pair: 'pair', clean: 'clean prompt', corrupted: 'corrupted prompt', answer: 'answer', wrong: 'wrong answer', predicted: 'predicted',
    right: 'right', clean_metric: 'clean', corrupted_metric: 'corrupted', circuit_metric: 'circuit', empty_metric: 'empty',
    template: 'template', where: 'where', outlier: 'outlier',
  };
  const TIPS = {
    clean_metric: 'the metric of the whole model on the clean prompt', corrupted_metric: 'the same on the corrupted prompt',
    circuit_metric: 'the metric with every edge outside the circuit ablated', empty_metric: 'the metric with every edge ablated',
    right: 'whether the model prefers the answer to the wrong answer', predicted: 'the token that the model puts first',
    outlier: 'where the circuit misses the model by much more than on other prompts',
  };
  const NUMBERS = ['pair', 'clean_metric', 'corrupted_metric', 'circuit_metric', 'empty_metric'];

  CF.section('prompts', 'Prompts', (root, data) => {
    const columns = data.columns.map((key, i) => ({
      title: TITLES[key] || key, tip: TIPS[key], num: NUMBERS.includes(key), value: (row) => row[i],
      cell: key === 'clean' || key === 'corrupted' ? (row) => el('span', { class: 'prompt' }, row[i])
        : key === 'where' || key === 'outlier' ? (row) => el('span', { class: 'where' }, row[i])
        : key.endsWith('_metric') ? (row) => CF.number(row[i], 2)
          : ['answer', 'wrong', 'predicted'].includes(key) ? (row) => el('span', { class: 'mono' }, row[i]) : null,
    }));
    const at = (name) => data.columns.indexOf(name);
    const wrong = (row) => at('right') >= 0 && row[at('right')] === false;
    const odd = (row) => at('outlier') >= 0 && Boolean(row[at('outlier')]);
    const counts = [data.rows.filter(wrong).length, data.rows.filter(odd).length];
    let only = null;
    const chooser = (title, test, count) => {
      if (!count) return null;
      const button = el('button', {
        type: 'button', class: 'small', 'aria-pressed': 'false',
        onclick: () => {
          only = only === test ? null : test;
          root.querySelectorAll('[aria-pressed]').forEach((b) => b.setAttribute('aria-pressed', String(b === button && only !== null)));
          shown.draw();
        },
      }, `${title} (${count})`);
      return button;
    };
    root.append(el('p', { class: 'muted' }, `Metrics are ${data.metric}. `,
      counts[0] ? `${counts[0]} answered wrongly (marked ✗). ` : '', counts[1] ? `${CF.count(counts[1], 'outlier')} (marked !). ` : '',
      data.partial || '', data.rows.length < data.total ? ` The first ${data.rows.length} of ${data.total} pairs.` : ''));
    const shown = CF.table(root, columns, data.rows, {
      name: `${CF.data.manifest ? CF.data.manifest.name : 'run'}-prompts`, caption: 'prompts',
      look: (row) => [wrong(row) ? 'wrong' : '', odd(row) ? 'outlier' : ''].join(' ').trim() || null,
      extra: [chooser('wrong answers', wrong, counts[0]), chooser('outliers', odd, counts[1])].filter(Boolean),
      keep: (row) => !only || only(row),
    });
  });
})();

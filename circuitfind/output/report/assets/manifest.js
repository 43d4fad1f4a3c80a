(() => {
  'use strict';
  const { el } = CF;

  const leaf = (value) => {
    if (value && typeof value === 'object' && Object.keys(value).length === 1 && 'float' in value) return value.float;
    return value === null ? '–' : typeof value === 'string' ? value : JSON.stringify(value);
  };
  const flat = (value) => !Array.isArray(value) || value.every((item) => item === null || typeof item !== 'object');

  /* Keys and values; what holds more opens and closes. */
  const tree = (data) => el('dl', { class: 'tree' }, Object.entries(data).map(([key, value]) => {
    const deep = value && typeof value === 'object' && !('float' in value) && (!flat(value) || (!Array.isArray(value) && Object.keys(value).length));
    return [el('dt', null, key), el('dd', { class: deep ? null : 'mono' }, deep ? tree(value) : leaf(value))];
  }));
  const fold = (title, ...content) => el('details', null, el('summary', null, title), ...content);

  CF.section('manifest', 'Manifest', (root, data) => {
    const stages = Object.entries(data.stages || {});
    const took = (facts, key) => (facts && facts[key] !== undefined ? facts[key] : null);
    const columns = [
      { title: 'stage', value: ([name]) => name },
      { title: 'seconds', num: true, value: ([, s]) => took(s.facts, 'seconds'), cell: ([, s]) => CF.number(took(s.facts, 'seconds'), 2) },
      { title: 'forward passes', num: true, value: ([, s]) => took(s.facts, 'forward_passes') },
      { title: 'backward passes', num: true, value: ([, s]) => took(s.facts, 'backward_passes') },
      { title: 'finished', value: ([, s]) => s.finished, cell: ([, s]) => s.finished.slice(0, 19).replace('T', ' ') },
      { title: 'files', value: ([, s]) => Object.keys(s.files).join(', ') },
    ];
    const { stages: _, ...rest } = data;
    const command = Array.isArray(data.command) ? data.command.join(' ') : '';
    root.append(el('p', { class: 'muted' },
      'Where it all comes from: configuration, hashes, versions, and what each stage took. The last command in this folder: ',
      el('code', null, command)));
    CF.table(root, columns, stages, { filter: false, caption: 'stages' });
    root.append(
      fold('Configuration, hashes, versions, platform', tree(rest)),
      ...stages.map(([name, stage]) => fold(`Stage ${name}: files with their hashes, facts`, tree(stage))),
      el('p', null, el('button', {
        type: 'button', class: 'small',
        onclick: () => CF.download(`${data.name || 'run'}-manifest.json`, JSON.stringify(data, null, 1), 'application/json'),
      }, 'download manifest.json')));
  });
})();

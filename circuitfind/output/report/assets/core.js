'use strict';

/* What every section of a page builds on: elements without HTML, numbers, tips, colours, one shared selection. */
const CF = (() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const SHORT = { heatmap: 'Effects', curve: 'Curves', patterns: 'Attention', backups: 'Backups', units: 'Units', tables: 'Tables' };
  const sections = [];
  const listeners = {};
  const absent = (value) => value === null || value === undefined || !Number.isFinite(value);

  const put = (element, attributes, children) => {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith('on') && typeof value === 'function') element.addEventListener(key.slice(2).toLowerCase(), value);
      else if (key === 'style' && typeof value === 'object') {
        for (const [name, setting] of Object.entries(value)) element.style.setProperty(name, setting);
      } else element.setAttribute(key, value === true ? '' : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return element;
  };
  const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

  /* Numbers: a true minus, a dash for what there is not. */
  const number = (x, digits = 3) => (absent(x) ? '–' : x.toFixed(digits).replace('-', '−'));
  const signed = (x, digits = 3) => (absent(x) ? '–' : (x < 0 ? '' : '+') + number(x, digits));
  const short = (x) => {
    if (absent(x)) return '–';
    const text = x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
    return text.replaceAll('-', '−');
  };
  const interval = (found, digits = 3) => {
    if (!found) return '–';
    const end = (x, sign) => (absent(x) ? sign + '∞' : number(x, digits));
    return `${number(found.value, digits)} [${end(found.low, '−')}, ${end(found.high, '')}]`;
  };
  const percent = (x, digits = 1) => (absent(x) ? '–' : number(100 * x, digits) + ' %');
  const count = (n, one, many) => `${n.toLocaleString('en')} ${n === 1 ? one : many || one + 's'}`;

  /* Where something was measured on other prompts than the faithfulness on top of the page. */
  const besides = (n) => {
    const [first] = (CF.data.verdict && CF.data.verdict.evaluations) || [];
    return first && first.n_prompts !== n ? ` The faithfulness in the verdict is over ${count(first.n_prompts, 'prompt')}.` : '';
  };

  /* A colour centred at zero: the card's own at 0, the sign's at ±max. Blue and vermilion, light and dark alike. */
  const diverging = (value, max) => {
    if (absent(value)) return 'var(--line)';
    const share = max > 0 ? Math.min(1, Math.abs(value) / max) : 0;
    return `color-mix(in oklab, var(${value < 0 ? '--neg' : '--pos'}) ${(100 * share).toFixed(1)}%, var(--card))`;
  };

  /* One tip for the whole page, for the pointer and for the keyboard. */
  let tipBox = null;
  let tipOf = null;
  const hideTip = () => {
    if (tipBox) tipBox.hidden = true;
    if (tipOf) tipOf.removeAttribute('aria-describedby');
    tipOf = null;
  };
  const showTip = (owner, content, x, y) => {
    const made = content();
    if (!made) return hideTip();
    if (!tipBox) {
      tipBox = el('div', { class: 'tip', role: 'tooltip', id: 'cf-tip', hidden: true });
      document.body.append(tipBox);
    }
    tipBox.replaceChildren(made instanceof Node ? made : document.createTextNode(String(made)));
    tipBox.hidden = false;
    if (tipOf !== owner) {
      if (tipOf) tipOf.removeAttribute('aria-describedby');
      tipOf = owner;
      owner.setAttribute('aria-describedby', 'cf-tip');
    }
    const size = tipBox.getBoundingClientRect();
    const left = Math.max(6, Math.min(x + 14, innerWidth - size.width - 6));
    const below = y + 18 + size.height < innerHeight;
    tipBox.style.left = `${left}px`;
    tipBox.style.top = `${Math.max(6, below ? y + 18 : y - size.height - 10)}px`;
  };
  const tip = (element, content) => {
    const follow = (event) => showTip(element, content, event.clientX, event.clientY);
    element.addEventListener('pointerenter', follow);
    element.addEventListener('pointermove', follow);
    element.addEventListener('pointerleave', hideTip);
    element.addEventListener('focus', () => {
      if (!element.matches(':focus-visible')) return;
      const box = element.getBoundingClientRect();
      showTip(element, content, box.left + box.width / 2, box.bottom - 10);
    });
    element.addEventListener('blur', hideTip);
    return element;
  };

  /* Events: "select" is shared by all sections; the value is a node's name or null. */
  const on = (event, listener) => (listeners[event] ||= []).push(listener);
  const emit = (event, value) => (listeners[event] || []).forEach((listener) => listener(value));
  const select = (name) => {
    CF.selected = name || null;
    emit('select', CF.selected);
  };

  const download = (name, text, type = 'text/csv') => {
    const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
    const link = el('a', { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  /* A command whose words are not broken at their hyphens. */
  const words = (text) => text.split(/( +)/).map((word) => (word.trim() === '' ? word : el('span', { class: 'word' }, word)));
  /* A text with code between backticks. */
  const prose = (text) => text.split('`').map((part, i) => (i % 2 ? el('code', {}, part) : part));

  const copyButton = (text, title = 'copy') => {
    const said = (words) => {
      button.textContent = words;
      setTimeout(() => (button.textContent = title), 1500);
    };
    const byHand = () => {
      // Without the clipboard's permission (a file, an old browser) the selected text of a field still copies.
      const field = el('textarea', { class: 'away', 'aria-hidden': 'true' }, text);
      document.body.append(field);
      field.select();
      const done = document.execCommand('copy');
      field.remove();
      button.focus();
      said(done ? 'copied' : 'not allowed');
    };
    const button = el('button', {
      type: 'button', class: 'small',
      onclick: () => (navigator.clipboard
        ? navigator.clipboard.writeText(text).then(() => said('copied'), byHand)
        : byHand()),
    }, title);
    return button;
  };

  const section = (id, title, render) => sections.push({ id, title, render });

  const themeButton = () => {
    const root = document.documentElement;
    const dark = () => (root.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
    const name = () => (dark() ? 'light page' : 'dark page');
    const button = el('button', {
      type: 'button', class: 'small', id: 'theme',
      onclick: () => {
        root.dataset.theme = dark() ? 'light' : 'dark';
        button.textContent = name();
        emit('theme', root.dataset.theme);
      },
    }, name());
    return button;
  };

  const start = () => {
    const main = document.querySelector('main');
    const nav = document.querySelector('nav');
    for (const { id, title, render } of sections) {
      const root = el('div', { class: 'body' });
      const data = CF.data[id];
      const there = data !== null && data !== undefined;
      main.append(el('section', { id, class: there ? 'card' : 'card empty', 'aria-labelledby': `${id}-title` },
        el('h2', { id: `${id}-title` }, title), root));
      if (nav) nav.append(el('a', { href: `#${id}`, class: there ? null : 'muted' }, SHORT[id] || title));
      if (!there) {
        root.append(el('p', { class: 'muted' }, CF.prose((CF.data.missing || {})[id] || 'This run holds nothing of the kind.')));
        continue;
      }
      try {
        render(root, data, CF);
      } catch (error) {
        console.error(`section ${id}`, error);
        root.append(el('p', { class: 'warn' }, `This part could not be drawn: ${error.message}`));
      }
    }
    if (nav) nav.append(themeButton());
    document.addEventListener('keydown', (event) => event.key === 'Escape' && hideTip());
    document.addEventListener('scroll', hideTip, { passive: true });
    document.documentElement.dataset.ready = 'yes';
  };

  return {
    data: JSON.parse(document.getElementById('data').textContent), selected: null,
    section, el, svg, number, signed, short, interval, percent, count, besides, diverging, tip, hideTip, on, emit, select,
    download, words, prose, copyButton, start,
  };
})();

document.addEventListener('DOMContentLoaded', CF.start);

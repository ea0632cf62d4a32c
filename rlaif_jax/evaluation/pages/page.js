'use strict';
const {samples, files} = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
// Characters that cannot be seen, or that turn what stands round them: they are written out.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/;
const LONG = 3000, STEP = 20;

function make(tag, name, ...inside) {
  const found = document.createElement(tag);
  if (name) found.className = name;
  found.append(...inside);
  return found;
}

// Texts go into the page as texts, never as HTML.
function write(into, text) {
  let plain = '';
  for (const sign of text) {
    const hidden = HIDDEN.test(sign) && !(sign.length === 2);
    if (!hidden) { plain += sign; continue; }
    into.append(plain, make('span', 'sign', 'U+' + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')));
    plain = '';
  }
  into.append(plain);
}

function save(name, text) {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/octet-stream'}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function lines() {
  return samples.rows.map(row => {
    const named = (values) => Object.fromEntries(samples.policies.map((name, i) => [name, values[i]]));
    const votes = samples.pairs.map(([a, b], i) => [
      samples.policies[a] + ' vs ' + samples.policies[b], Object.fromEntries(samples.judges.map((judge, j) => [judge, row.votes[i][j]]))]);
    return JSON.stringify({prompt_id: row.id, prompt: row.prompt, ...named(row.texts), votes: Object.fromEntries(votes),
      ...(row.quality ? {quality: named(row.quality)} : {})}) + '\n';
  }).join('');
}

for (const button of document.querySelectorAll('button.file')) {
  button.addEventListener('click', () => button.dataset.name ? save(button.dataset.name, files[button.dataset.name]) : save('samples.jsonl', lines()));
}

// Which words of `one` are not in `other`, in order: the longest common run of words is left unmarked.
function changed(one, other) {
  const a = one.match(/\s+|\S+/g) || [], b = other.match(/\s+|\S+/g) || [];
  if (a.length * b.length > 400000) return null;
  const width = b.length + 1, best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
    best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
  const flags = [];
  let at = 0;
  for (let i = 0, j = 0; i < a.length; i++) {
    while (j < b.length && a[i] !== b[j] && best[i * width + j + 1] >= best[(i + 1) * width + j]) j++;
    const same = j < b.length && a[i] === b[j];
    if (same) j++;
    flags.push([at, at + a[i].length, !same && a[i].trim() !== '']);
    at += a[i].length;
  }
  return flags;
}

// A response: words that the other one does not have, and, where the world is simulated, what is stated wrong.
function response(text, other, wrong) {
  const box = make('p', 'text');
  box.dir = 'auto';
  const cut = text.length > LONG;
  const shown = cut ? text.slice(0, LONG) : text;
  const flags = cut ? null : changed(text, other);
  const ends = new Set([0, shown.length]);
  for (const [from, to] of [...(flags || []), ...wrong]) ends.add(Math.min(from, shown.length)).add(Math.min(to, shown.length));
  const at = [...ends].sort((x, y) => x - y);
  for (let k = 0; k + 1 < at.length; k++) {
    const [from, to] = [at[k], at[k + 1]];
    const bad = wrong.find(one => one[0] <= from && to <= one[1]);
    const isNew = flags && flags.some(one => one[2] && one[0] <= from && to <= one[1]);
    const piece = isNew ? make('ins') : bad ? make('span') : null;
    if (bad) { piece.classList.add('bad'); piece.title = 'not so: ' + bad[2]; }
    write(piece || box, shown.slice(from, to));
    if (piece) box.append(piece);
  }
  if (!text) box.append(make('em', '', '(empty)'));
  if (cut) {
    const more = make('button', '', 'all ' + text.length + ' characters');
    more.type = 'button';
    more.addEventListener('click', () => { more.remove(); write(box, text.slice(LONG)); });
    box.append(' … ', more);
  }
  return box;
}

function said(vote, a, b) {
  return vote === null ? 'could not say' : vote === 0.5 ? 'a tie' : vote > 0.5 ? a : b;
}

function card(row, number, pair) {
  const [a, b] = samples.pairs.length ? samples.pairs[pair] : [0, samples.policies.length > 1 ? 1 : 0];
  const names = samples.policies, votes = samples.pairs.length ? row.votes[pair] : [];
  const found = make('article', 'card');
  found.id = 's' + (number + 1);
  found.tabIndex = -1;
  const link = make('a');
  link.href = '#' + found.id;
  write(link, '#' + (number + 1) + ' ' + row.id.slice(0, 80));
  const top = make('header', '', link);
  samples.judges.forEach((judge, j) => {
    if (votes.length) top.append(make('span', '', judge + ': ', make('b', '', said(votes[j], names[a], names[b]))));
  });
  const prompt = make('div', 'text prompt');
  prompt.dir = 'auto';
  prompt.tabIndex = 0;
  write(prompt, row.prompt.trim().slice(0, 20000) + (row.prompt.length > 20000 ? ' … (' + row.prompt.length + ' characters)' : ''));
  const side = (i, j) => {
    const wins = votes.length && votes[0] !== null && (i === a ? votes[0] > 0.5 : i === b && votes[0] < 0.5);
    const about = [row.texts[i].length + ' characters'];
    if (row.quality) about.push('quality ' + row.quality[i].toFixed(2));
    return make('div', '', make('div', 'name' + (wins ? ' won' : ''), names[i] + (wins ? ' ✓' : '') + ' · ' + about.join(' · ')),
      response(row.texts[i], row.texts[j], row.wrong ? row.wrong[i] : []));
  };
  found.append(top, prompt, a === b ? side(a, b) : make('div', 'two', side(a, b), side(b, a)));
  const others = names.map((_, i) => i).filter(i => i !== a && i !== b);
  if (others.length) {
    const rest = make('details', '', make('summary', '', 'the others'));
    rest.addEventListener('toggle', () => { if (rest.children.length === 1) rest.append(...others.map(i => side(i, i))); });
    found.append(rest);
  }
  return found;
}

function start() {
  const option = (select, values) => values.forEach(([value, text]) => { const one = make('option', '', text); one.value = value; byId(select).append(one); });
  const names = samples.policies, judges = samples.judges;
  option('pair', samples.pairs.map(([a, b], i) => [i, names[a] + ' vs ' + names[b]]));
  const votes = row => row.votes[+byId('pair').value || 0] || [];
  const pair = () => samples.pairs[+byId('pair').value || 0] || [0, 0];
  const first = row => votes(row)[0];
  const gap = row => row.quality ? row.quality[pair()[0]] - row.quality[pair()[1]] : 0;
  const stretch = row => Math.abs(Math.log(Math.max(1, row.texts[pair()[0]].length) / Math.max(1, row.texts[pair()[1]].length)));
  const shows = {
    all: ['all', () => true],
    lost: ['A loses', row => first(row) !== null && first(row) < 0.5],
    won: ['A wins', row => first(row) !== null && first(row) > 0.5],
    tied: ['ties', row => first(row) === 0.5],
    mute: ['unscorable', row => first(row) === null],
  };
  if (judges.length > 1) shows.split = [judges.join(' and ') + ' disagree', row => votes(row).some(v => v !== null && v > 0.5) && votes(row).some(v => v !== null && v < 0.5)];
  if (samples.rows.some(row => row.wrong)) shows.wrong = ['A says what is not so', row => row.wrong[pair()[0]].length > 0];
  const orders = {
    given: ['as they came', null],
    worst: ['worst losses of A first', row => 10 * votes(row).reduce((sum, v) => sum + (v === null ? 0.5 : v), 0) + gap(row)],
    long: ['longest responses of A first', row => -row.texts[pair()[0]].length],
    unlike: ['most unlike in length first', row => -stretch(row)],
  };
  option('show', Object.entries(shows).map(([value, [text]]) => [value, text]));
  option('order', Object.entries(orders).map(([value, [text]]) => [value, text]));
  let chosen = [], shown = 0, now = -1;
  const more = () => {
    const part = chosen.slice(shown, shown + STEP).map(i => card(samples.rows[i], i, +byId('pair').value || 0));
    byId('cards').append(...part);
    shown += part.length;
    byId('more').hidden = shown >= chosen.length;
    const left = samples.total > samples.rows.length ? ' (of the first ' + samples.rows.length + '; all ' + samples.total + ' are in responses.jsonl)' : '';
    byId('count').textContent = shown + ' of ' + chosen.length + ' shown' + left;
  };
  const list = () => {
    const words = byId('find').value.toLowerCase().split(/\s+/).filter(Boolean), keep = shows[byId('show').value][1], key = orders[byId('order').value][1];
    chosen = samples.rows.map((_, i) => i).filter(i => {
      const row = samples.rows[i];
      if (!keep(row)) return false;
      const text = words.length ? [row.id, row.prompt, ...row.texts].join('\n').toLowerCase() : '';
      return words.every(word => text.includes(word));
    });
    if (key) { const value = new Map(chosen.map(i => [i, key(samples.rows[i])])); chosen.sort((x, y) => value.get(x) - value.get(y) || x - y); }
    byId('cards').replaceChildren();
    shown = 0; now = -1;
    more();
  };
  const go = step => {
    const next = now + step;
    if (next < 0 || next >= chosen.length) return;
    if (next >= shown) more();
    const cards = byId('cards').children;
    if (cards[now]) cards[now].classList.remove('now');
    now = next;
    cards[now].classList.add('now');
    cards[now].focus({preventScroll: true});
    cards[now].scrollIntoView({block: 'start'});
  };
  const follow = () => {
    const number = /^#s(\d+)$/.exec(location.hash);
    if (!number || !samples.rows[number[1] - 1]) return;
    let at = chosen.indexOf(number[1] - 1);
    if (at < 0) { byId('find').value = ''; byId('show').value = 'all'; list(); at = chosen.indexOf(number[1] - 1); }
    while (shown <= at) more();
    go(at - now);
  };
  for (const id of ['find', 'pair', 'show', 'order']) byId(id).addEventListener('input', list);
  byId('filters').addEventListener('submit', event => event.preventDefault());
  byId('more').addEventListener('click', more);
  addEventListener('hashchange', follow);
  addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === 'j') go(1);
    if (event.key === 'k') go(-1);
    if (event.key === '/') { event.preventDefault(); byId('find').focus(); }
  });
  byId('filters').hidden = false;
  if (!samples.pairs.length) byId('pair').parentElement.hidden = true;
  list();
  follow();
}

if (samples) start();

'use strict';
const task = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/;
const AGAIN = 1 / 15, LATER = 10; // of the prompts are asked again, so many later
let rater = '', queue = [], said = {}, at = 0, order = [], places = [], tie = false, began = 0, kept = true;

function make(tag, name, ...inside) {
  const found = document.createElement(tag);
  if (name) found.className = name;
  found.append(...inside);
  return found;
}

// Texts go into the page as texts, never as HTML; what cannot be seen of them is written out.
function write(into, text) {
  let plain = '';
  into.replaceChildren();
  for (const sign of text) {
    if (sign.length === 2 || !HIDDEN.test(sign)) { plain += sign; continue; }
    into.append(plain, make('span', 'sign', 'U+' + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')));
    plain = '';
  }
  into.append(plain);
}

// A number in [0, 1) that is a hash of a text (FNV-1a, then mixed).
function chance(text) {
  let hash = 2166136261;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 16777619);
  hash = Math.imul(hash ^ (hash >>> 16), 2246822507);
  hash = Math.imul(hash ^ (hash >>> 13), 3266489909);
  return ((hash ^ (hash >>> 16)) >>> 0) / 4294967296;
}

// What this rater is asked, in order: some of it again, without saying so.
function asked() {
  const found = task.rows.map((row, i) => ({i, again: false, when: i}));
  task.rows.forEach((row, i) => { if (chance(rater + '\n' + row.id + '\nagain') < AGAIN) found.push({i, again: true, when: i + LATER + 0.5}); });
  return found.sort((x, y) => x.when - y.when);
}

// The cards of an item: equal texts are one card; their order is the rater's own, and another when asked again.
function cards(item) {
  const row = task.rows[item.i], found = new Map();
  row.texts.forEach((text, k) => found.set(text, [...(found.get(text) || []), task.policies[k]]));
  const by = text => chance([rater, row.id, item.again, text].join('\n'));
  return [...found].map(([text, names]) => ({text, names})).sort((x, y) => by(x.text) - by(y.text));
}

const name = item => task.rows[item.i].id + (item.again ? '\nagain' : '');
const store = () => 'rank ' + task.digest + ' ' + rater;

function keep() {
  try { localStorage.setItem(store(), JSON.stringify(said)); kept = true; } catch { kept = false; }
}

function lines() {
  return queue.filter(item => said[name(item)]).map(item => {
    const row = said[name(item)];
    return JSON.stringify({prompt_id: task.rows[item.i].id, rater, ...row, ...(item.again ? {repeat: true} : {})}) + '\n';
  }).join('');
}

function ranking() {
  const found = [];
  places.forEach((place, k) => { if (place !== null) (found[place] = found[place] || []).push(...order[k].names); });
  return found.map(names => names.length > 1 ? names : names[0]);
}

function answer(more) {
  const row = said[name(queue[at])] = {...more, seconds: Math.round((Date.now() - began) / 1000), at: new Date().toISOString()};
  if (byId('comment').value.trim()) row.comment = byId('comment').value.trim();
  keep();
  show(at + 1);
}

function last() { return Math.max(-1, ...places.map(place => place === null ? -1 : place)); }
let history = [];

function choose(k) {
  if (k >= order.length || places[k] !== null) return;
  history.push([...places]);
  places[k] = tie && last() >= 0 ? last() : last() + 1;
  tie = false;
  draw();
}

function undo() { if (history.length) { places = history.pop(); tie = false; draw(); } }

function draw() {
  [...byId('cards').children].forEach((box, k) => {
    box.querySelector('.place').textContent = places[k] === null ? '' : 'place ' + (places[k] + 1);
    box.querySelector('button').disabled = places[k] !== null;
    box.classList.toggle('now', places[k] !== null);
  });
  byId('tie').setAttribute('aria-pressed', tie);
  byId('tie').disabled = last() < 0 || places.every(place => place !== null);
  byId('undo').disabled = !history.length;
  byId('next').disabled = places.some(place => place === null);
}

function go() { if (!byId('next').disabled) answer({ranking: ranking()}); }

function show(next) {
  at = next;
  const done = queue.filter(item => said[name(item)]).length, over = at >= queue.length;
  byId('count').textContent = (over ? 'All ' + queue.length + ' are done. Save the file.' : (at + 1) + ' of ' + queue.length + ', ' + done + ' done')
    + (kept ? '' : ' This browser keeps nothing: save the file before you leave.');
  byId('progress').max = queue.length;
  byId('progress').value = done;
  for (const id of ['asked', 'cards', 'next', 'tie', 'undo', 'about']) byId(id).hidden = over;
  byId('back').disabled = at === 0;
  if (over) return;
  order = cards(queue[at]);
  history = []; tie = false; began = Date.now();
  const before = said[name(queue[at])], given = (before && before.ranking || []).map(names => [].concat(names));
  const place = order.map(card => given.findIndex(names => names.includes(card.names[0])));
  places = order.map(() => null);
  // What was said before is there again, as if it were chosen one by one, so that it can be taken back.
  order.map((_, k) => k).filter(k => place[k] >= 0).sort((x, y) => place[x] - place[y]).forEach(k => { history.push([...places]); places[k] = place[k]; });
  byId('comment').value = before && before.comment || '';
  byId('skip').value = before && before.skipped || '';
  byId('leave').disabled = !byId('skip').value;
  write(byId('asked'), task.rows[queue[at].i].prompt.trim());
  byId('cards').replaceChildren(...order.map((card, k) => {
    const text = make('p', 'text'), button = make('button', '', (k + 1) + ': next best');
    text.dir = 'auto';
    write(text, card.text.trim() || '(empty)');
    button.type = 'button';
    button.addEventListener('click', () => choose(k));
    return make('article', 'card', text, make('p', '', button, ' ', make('b', 'place')));
  }));
  if (order.length === 1) places = [0]; // all wrote the same, so all are tied
  draw();
  byId('asked').scrollIntoView({block: 'nearest'});
}

// With the rows of a saved file; of two answers the later one is kept, and of those of one time this browser's.
function start(rows) {
  queue = asked();
  try { said = JSON.parse(localStorage.getItem(store()) || '{}'); } catch { said = {}; }
  for (const {prompt_id, rater: _, repeat, ...row} of rows) {
    const key = prompt_id + (repeat ? '\nagain' : ''), here = said[key];
    if (!here || String(row.at || '') > String(here.at || '')) said[key] = row;
  }
  keep();
  byId('begin').hidden = true;
  byId('work').hidden = false;
  const first = queue.findIndex(item => !said[name(item)]);
  show(first < 0 ? queue.length : first);
}

function skip() { if (byId('skip').value && at < queue.length) answer({skipped: byId('skip').value}); }

byId('who').addEventListener('submit', event => {
  event.preventDefault();
  rater = byId('rater').value.trim();
  if (rater) start([]);
});
byId('load').addEventListener('change', async event => {
  try {
    const rows = (await event.target.files[0].text()).split('\n').filter(line => line.trim()).map(line => JSON.parse(line));
    if (!rows.length || !rows[0].rater || new Set(rows.map(row => row.rater)).size > 1) throw new Error('one rater’s file is wanted');
    if (!rows.some(row => task.rows.some(one => one.id === row.prompt_id))) throw new Error('it is about other prompts');
    rater = String(rows[0].rater);
    start(rows);
  } catch (error) { byId('wrong').textContent = 'That file cannot be read: ' + error.message; }
});
byId('tie').addEventListener('click', () => { tie = !tie; draw(); });
byId('undo').addEventListener('click', undo);
byId('next').addEventListener('click', go);
byId('back').addEventListener('click', () => show(at - 1));
byId('skip').addEventListener('change', () => { byId('leave').disabled = !byId('skip').value; });
byId('leave').addEventListener('click', skip);
byId('filters').addEventListener('submit', event => event.preventDefault());
byId('save').addEventListener('click', () => {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([lines()], {type: 'application/octet-stream'}));
  link.download = 'rankings-' + (rater.replace(/[^\w-]+/g, '_') || 'rater') + '.jsonl';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
// Enter is for what is ranked, not for the button that a mouse has pressed last.
addEventListener('click', event => { if (event.detail && event.target.tagName === 'BUTTON') event.target.blur(); });
addEventListener('keydown', event => {
  if (byId('work').hidden || at >= queue.length || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA|BUTTON)$/.test(event.target.tagName) && event.key === 'Enter' || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (/^[1-9]$/.test(event.key)) choose(event.key - 1);
  if (event.key === '=') { tie = true; draw(); }
  if (event.key === 'u' || event.key === 'Backspace') undo();
  if (event.key === 'Enter') go();
});

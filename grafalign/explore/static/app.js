// The page: what is typed, dropped, clicked and drawn becomes a search, and its answers a list beside the map.
import { base64, get, post } from '/static/api.js';
import { Chart, middle } from '/static/map.js';
import { Points } from '/static/points.js';

const $ = id => document.getElementById(id);
const state = { heat: null, last: null, answers: [], chosen: null, region: null, mode: null, corners: [] };
let chart;

function say(sentence, wrong = false) {
  $('status').textContent = sentence;
  $('status').classList.toggle('wrong', wrong);
}

// one of drawing a region, clicking a place and clicking points at a time
function setMode(mode) {
  if (state.mode === 'draw') { state.corners = []; chart.region(state.region ?? [], true); }
  state.mode = state.mode === mode ? null : mode;
  for (const [name, id] of [['draw', 'draw'], ['place', 'place'], ['mark', 'mark']]) $(id).setAttribute('aria-pressed', state.mode === name);
  $('map').classList.toggle('pointing', state.mode !== null);
  if (state.mode === 'draw') { state.corners = []; say('Click the corners of the region; Enter or a double click closes it, Escape gives up.'); }
  if (state.mode === 'place') say('Click a place on the map, or press Enter for its middle.');
}

function filters() {
  const day = id => $(id).value ? `${$(id).value}T00:00:00Z` : null;
  const region = state.region && { type: 'Polygon', coordinates: [[...state.region, state.region[0]]] };
  return { begin: day('begin'), end: day('end'), least: Number($('least').value), region };
}

let running = null;

async function search(what) {
  state.last = what;
  running?.abort();
  const mine = running = new AbortController();
  say('Searching …');
  try {
    const found = await post('/api/search', { ...what, ...filters() }, mine.signal);
    if (mine === running) show(found.query, found.heat, found.answers.features);
  } catch (error) { if (mine === running) say(error.message, true); }
}

let waiting = null;

// search anew when filters have changed, and have not changed again for a moment
function again() {
  clearTimeout(waiting);
  waiting = setTimeout(() => state.last && search(state.last), 300);
}

function show(query, heat, answers) {
  state.heat = heat;
  state.answers = answers;
  chart.items(answers);
  chart.heat($('heat').checked ? heat : null, Number($('fade').value));
  for (const ending of ['geojson', 'parquet', 'csv']) $(ending).href = `/api/export/${query}.${ending}`;
  $('exports').hidden = false;
  $('detail').hidden = true;
  $('answers').replaceChildren(...answers.map(listed));
  say(answers.length ? `${answers.length} answers` : 'Nothing is left by these filters.');
  chart.choose(-1, null);
}

function listed(feature) {
  const { row, score, item_id, datetime } = feature.properties;
  const button = document.createElement('button');
  button.type = 'button';
  button.dataset.row = row;
  button.setAttribute('aria-pressed', 'false');
  const picture = document.createElement('img');
  picture.src = `/api/thumb/${row}.jpg`;
  picture.alt = '';
  picture.loading = 'lazy';
  picture.onerror = () => picture.removeAttribute('src');
  const line = (text, soft) => { const span = document.createElement('span'); span.textContent = text; span.className = soft ? 'soft' : ''; span.title = text; return span; };
  button.append(picture, line(`${score.toFixed(3)} ${item_id}`), line(datetime ? datetime.slice(0, 10) : '', true));
  button.onclick = () => choose(feature);
  const item = document.createElement('li');
  item.append(button);
  return item;
}

async function choose(feature) {
  const { row, score, item_id, datetime } = feature.properties;
  state.chosen = row;
  for (const button of $('answers').querySelectorAll('button')) button.setAttribute('aria-pressed', String(Number(button.dataset.row) === row));
  chart.choose(row, feature.geometry);
  $('detail-name').textContent = item_id;
  const place = (middle(feature.geometry) ?? []).reverse().map(v => v.toFixed(5)).join(', ');
  $('detail-text').textContent = [`score ${score.toFixed(3)}`, datetime ?? '', place].filter(Boolean).join(' · ');
  $('photos').replaceChildren();
  $('detail').hidden = false;
  $('detail').scrollIntoView({ block: 'nearest' });
  $('detail-name').focus({ preventScroll: true });
  try {
    const photos = await get(`/api/photos/${row}`);
    if (state.chosen === row) $('photos').replaceChildren(...photos.map(figure));
  } catch (error) { if (state.chosen === row) say(error.message, true); }
}

function figure(photo) {
  const made = document.createElement('figure');
  if (photo.shown) {
    const picture = document.createElement('img');
    picture.src = `/api/photo/${photo.row}.jpg`;
    picture.alt = `ground photo${photo.day ? ` of ${photo.day}` : ''}`;
    picture.loading = 'lazy';
    made.append(picture);
  }
  const caption = document.createElement('figcaption');
  const said = [photo.day, photo.author, photo.licence].filter(Boolean).join(' · ');
  caption.textContent = photo.shown ? said : `A photo that is not shown here: ${said || 'it is elsewhere'}`;
  made.append(caption);
  return made;
}

function closeRegion() {
  const corners = state.corners;
  setMode(null);
  if (corners.length >= 3) { setRegion(corners); say('The region is set.'); again(); } else say('A region has at least three corners.', true);
}

function setRegion(corners) {
  state.region = corners;
  $('everywhere').disabled = corners === null;
  chart.region(corners ?? [], true);
}

function placed({ lng, lat }) {
  setMode(null);
  search({ lonlat: [((((lng + 180) % 360) + 360) % 360) - 180, lat] });
}

function clicked(event) {
  const at = [event.lngLat.lng, event.lngLat.lat];
  if (state.mode === 'draw') {
    const last = state.corners.at(-1);
    if (!last || last[0] !== at[0] || last[1] !== at[1]) state.corners.push(at);
    chart.region(state.corners, false);
  } else if (state.mode === 'place') {
    placed(event.lngLat);
  } else if (state.mode === 'mark') {
    points.add(at);
  } else {
    const hit = chart.map.queryRenderedFeatures(event.point, { layers: ['spots', 'items'] })[0];
    const feature = hit && state.answers.find(a => a.properties.row === hit.properties.row);
    if (feature) choose(feature);
  }
}

async function looksLike(file) {
  if (!file) return;
  if (file.size > 8 << 20) { say('A picture has at most 8 MB.', true); return; }
  try { search({ picture: await base64(file) }); } catch (error) { say(error.message, true); }
  $('picture').value = '';
}

function listen() {
  $('search').onsubmit = event => { event.preventDefault(); const text = $('words').value.trim(); if (text) search({ text }); else say('Type what to look for.', true); };
  $('picture').onchange = () => looksLike($('picture').files[0]);
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => { event.preventDefault(); looksLike(event.dataTransfer.files[0]); };
  $('place').onclick = () => { setMode('place'); $('place').blur(); };
  $('draw').onclick = () => { setMode('draw'); $('draw').blur(); };
  $('mark').onclick = () => setMode('mark');
  $('view').onclick = () => { setRegion(chart.view()); again(); };
  $('everywhere').onclick = () => { setRegion(null); again(); };
  $('begin').onchange = $('end').onchange = $('least').onchange = again;
  $('least').oninput = () => { $('least-shown').textContent = Number($('least').value) > -1 ? $('least').value : 'any'; };
  $('heat').onchange = () => chart.heat($('heat').checked ? state.heat : null, Number($('fade').value));
  $('fade').oninput = () => chart.fade(Number($('fade').value));
  $('like').onclick = () => search({ like: state.chosen });
  document.onkeydown = event => {
    if (event.key === 'Escape' && state.mode !== null) { setMode(null); say(''); }
    if (event.key !== 'Enter' || event.target.matches('input, select, button, summary, a')) return;
    if (state.mode === 'draw') { event.preventDefault(); closeRegion(); }
    if (state.mode === 'place') { event.preventDefault(); placed(chart.map.getCenter()); }
  };
  chart.map.on('click', clicked);
  chart.map.on('dblclick', event => { if (state.mode === 'draw') { event.preventDefault(); closeRegion(); } });
}

let points;
try {
  const about = await get('/api/about');
  chart = new Chart('map', about.fields);
  points = new Points(chart, about.fields.length, say);
  listen();
  await chart.ready;
  const bounds = about.fields[0]?.bounds ?? about.bounds;
  if (bounds) chart.fit(bounds);
  $('heat-controls').hidden = !about.fields.length;
  $('tuned').replaceChildren(...about.tuned.map(name => new Option(name, name)));
  say(`${about.items.toLocaleString('en')} items, by ${about.model}`);
  document.body.dataset.ready = 'yes';
} catch (error) { say(error.message, true); }

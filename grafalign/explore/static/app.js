// The page: what is typed, dropped, clicked and drawn becomes a search, and its answers a list beside the map.
import { base64, get, post } from '/static/api.js';
import { Chart, middle } from '/static/map.js';
import { Points } from '/static/points.js';

const $ = id => document.getElementById(id);
const state = { query: null, last: null, answers: [], chosen: null, region: null, mode: null, corners: [] };
let chart;

function say(sentence, wrong = false) {
  $('status').textContent = sentence;
  $('status').classList.toggle('wrong', wrong);
}

// one of drawing a region, clicking a place and clicking points at a time
function setMode(mode) {
  state.mode = state.mode === mode ? null : mode;
  for (const [name, id] of [['draw', 'draw'], ['place', 'place'], ['mark', 'mark']]) $(id).setAttribute('aria-pressed', state.mode === name);
  $('map').classList.toggle('pointing', state.mode !== null);
  if (state.mode === 'draw') { state.corners = []; say('Click the corners of the region; Enter or a double click closes it, Escape gives up.'); }
  if (state.mode === 'place') say('Click a place on the map.');
}

function filters() {
  const day = id => $(id).value ? `${$(id).value}T00:00:00Z` : null;
  const region = state.region && { type: 'Polygon', coordinates: [[...state.region, state.region[0]]] };
  return { begin: day('begin'), end: day('end'), least: Number($('least').value), region };
}

async function search(what) {
  state.last = what;
  say('Searching …');
  try {
    const found = await post('/api/search', { ...what, ...filters() });
    show(found.query, found.answers.features);
  } catch (error) { say(error.message, true); }
}

const again = () => state.last && search(state.last);

function show(query, answers) {
  state.query = query;
  state.answers = answers;
  chart.items(answers);
  chart.heat($('heat').checked ? query : null, Number($('fade').value));
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
  const place = feature.geometry ? middle(feature.geometry).reverse().map(v => v.toFixed(5)).join(', ') : '';
  $('detail-text').textContent = [`score ${score.toFixed(3)}`, datetime ?? '', place].filter(Boolean).join(' · ');
  $('photos').replaceChildren();
  $('detail').hidden = false;
  try { $('photos').replaceChildren(...(await get(`/api/photos/${row}`)).map(figure)); } catch (error) { say(error.message, true); }
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
  if (state.corners.length >= 3) { setRegion(state.corners); say('The region is set.'); again(); } else { chart.region([], false); say('A region has at least three corners.', true); }
  state.corners = [];
  setMode(null);
}

function setRegion(corners) {
  state.region = corners;
  $('everywhere').disabled = corners === null;
  chart.region(corners ?? [], true);
}

function clicked(event) {
  const at = [event.lngLat.lng, event.lngLat.lat];
  if (state.mode === 'draw') {
    state.corners.push(at);
    chart.region(state.corners, false);
  } else if (state.mode === 'place') {
    setMode(null);
    search({ lonlat: [((at[0] + 540) % 360) - 180, at[1]] });
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
}

function listen() {
  $('search').onsubmit = event => { event.preventDefault(); const text = $('words').value.trim(); if (text) search({ text }); else say('Type what to look for.', true); };
  $('picture').onchange = () => looksLike($('picture').files[0]);
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => { event.preventDefault(); looksLike(event.dataTransfer.files[0]); };
  $('place').onclick = () => setMode('place');
  $('draw').onclick = () => setMode('draw');
  $('mark').onclick = () => setMode('mark');
  $('view').onclick = () => { setRegion(chart.view()); again(); };
  $('everywhere').onclick = () => { setRegion(null); again(); };
  $('begin').onchange = $('end').onchange = $('least').onchange = again;
  $('least').oninput = () => { $('least-shown').textContent = Number($('least').value) > -1 ? $('least').value : 'any'; };
  $('heat').onchange = () => chart.heat($('heat').checked ? state.query : null, Number($('fade').value));
  $('fade').oninput = () => chart.fade(Number($('fade').value));
  $('like').onclick = () => search({ like: state.chosen });
  document.onkeydown = event => {
    if (state.mode === 'draw' && event.key === 'Enter') { event.preventDefault(); closeRegion(); }
    if (event.key === 'Escape' && state.mode !== null) { state.corners = []; if (state.mode === 'draw') setRegion(state.region); setMode(null); say(''); }
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

// The map: land, scenes, heat, items, the region and points, drawn by MapLibre from this server alone.
import * as maplibre from '/static/maplibre/maplibre-gl.mjs';

maplibre.setWorkerUrl(`${location.origin}/static/maplibre/maplibre-gl-worker.mjs`);
const EMPTY = { type: 'FeatureCollection', features: [] };
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const tiles = path => [`${location.origin}${path}/{z}/{x}/{y}.png`];

export class Chart {
  constructor(container, fields) {
    this.fields = fields;
    this.map = new maplibre.Map({
      container, attributionControl: false, maxZoom: 19, center: [0, 20], zoom: 1,
      style: {
        version: 8,
        sources: {
          land: { type: 'geojson', data: `${location.origin}/api/land`, attribution: 'Natural Earth' },
          ...Object.fromEntries(fields.map((field, i) => [`scene${i}`, this.raster(`/scene/${i}`, field)])),
          items: { type: 'geojson', data: EMPTY }, region: { type: 'geojson', data: EMPTY }, points: { type: 'geojson', data: EMPTY },
        },
        layers: [
          { id: 'sea', type: 'background', paint: { 'background-color': colour('--sea') } },
          { id: 'land', type: 'fill', source: 'land', filter: ['==', 'kind', 'land'], paint: { 'fill-color': colour('--land') } },
          { id: 'borders', type: 'line', source: 'land', paint: { 'line-color': colour('--border'), 'line-width': 1 } },
          ...fields.map((_, i) => ({ id: `scene${i}`, type: 'raster', source: `scene${i}`, paint: { 'raster-fade-duration': 0 } })),
          { id: 'items', type: 'line', source: 'items', paint: { 'line-color': colour('--leaf'), 'line-width': 2 } },
          { id: 'spots', type: 'circle', source: 'items', maxzoom: 12, filter: ['has', 'spot'], paint: { 'circle-radius': 5, 'circle-color': colour('--leaf'), 'circle-stroke-width': 1, 'circle-stroke-color': '#fff' } },
          { id: 'chosen', type: 'line', source: 'items', filter: ['==', 'row', -1], paint: { 'line-color': '#ff9d00', 'line-width': 4 } },
          { id: 'region', type: 'fill', source: 'region', filter: ['==', '$type', 'Polygon'], paint: { 'fill-color': '#3182bd', 'fill-opacity': 0.15 } },
          { id: 'outline', type: 'line', source: 'region', paint: { 'line-color': '#3182bd', 'line-width': 2 } },
          { id: 'points', type: 'circle', source: 'points', paint: { 'circle-radius': 6, 'circle-color': ['case', ['has', 'doubt'], '#ffd92f', '#e34aa0'], 'circle-stroke-width': 2, 'circle-stroke-color': '#1d2329' } },
        ],
      },
    });
    this.map.addControl(new maplibre.NavigationControl({ showCompass: false }), 'top-right');
    this.map.addControl(new maplibre.ScaleControl());
    this.map.addControl(new maplibre.AttributionControl({ compact: true }));
    this.ready = new Promise(done => this.map.once('load', done));
  }

  raster(path, field) {
    return { type: 'raster', tiles: tiles(path), tileSize: 256, maxzoom: 18, ...(field.clip ? { bounds: field.bounds } : {}) };
  }

  fit(bounds) {
    const [west, south, east, north] = bounds;
    this.map.fitBounds([[west, Math.max(-85, south)], [east, Math.min(85, north)]], { padding: 30, maxZoom: 15, animate: false });
  }

  heat(query, opacity) {
    this.fields.forEach((field, i) => {
      if (this.map.getLayer(`heat${i}`)) this.map.removeLayer(`heat${i}`);
      if (this.map.getSource(`heat${i}`)) this.map.removeSource(`heat${i}`);
      if (query === null) return;
      this.map.addSource(`heat${i}`, this.raster(`/heat/${query}/${i}`, field));
      this.map.addLayer({ id: `heat${i}`, type: 'raster', source: `heat${i}`, paint: { 'raster-opacity': opacity, 'raster-fade-duration': 0 } }, 'items');
    });
  }

  fade(opacity) {
    this.fields.forEach((_, i) => this.map.getLayer(`heat${i}`) && this.map.setPaintProperty(`heat${i}`, 'raster-opacity', opacity));
  }

  items(answers) {
    const placed = answers.filter(feature => middle(feature.geometry));
    const spots = placed.map(feature => ({ type: 'Feature', properties: { row: feature.properties.row, spot: true }, geometry: { type: 'Point', coordinates: middle(feature.geometry) } }));
    this.map.getSource('items').setData({ type: 'FeatureCollection', features: [...placed, ...spots] });
  }

  choose(row, geometry) {
    this.map.setFilter('chosen', ['==', 'row', row]);
    if (middle(geometry)) this.map.easeTo({ center: middle(geometry), zoom: Math.max(this.map.getZoom(), 12), duration: 300 });
  }

  region(corners, closed) {
    const ring = closed ? [...corners, corners[0]] : corners;
    const geometry = closed ? { type: 'Polygon', coordinates: [ring] } : { type: 'LineString', coordinates: ring };
    this.map.getSource('region').setData(corners.length ? { type: 'Feature', properties: {}, geometry } : EMPTY);
  }

  points(features) { this.map.getSource('points').setData({ type: 'FeatureCollection', features }); }

  view() {
    const b = this.map.getBounds();
    return [[b.getWest(), b.getSouth()], [b.getEast(), b.getSouth()], [b.getEast(), b.getNorth()], [b.getWest(), b.getNorth()]]
      .map(([lon, lat]) => [Math.max(-540, Math.min(540, lon)), Math.max(-89.9, Math.min(89.9, lat))]);
  }
}

// the middle of a geometry's bounds; null where it has no corner
export function middle(geometry) {
  const flat = [], walk = part => typeof part[0] === 'number' ? flat.push(part) : part.forEach(walk);
  if (geometry) walk(geometry.type === 'MultiPolygon' ? geometry.coordinates[0] ?? [] : geometry.coordinates);
  if (!flat.length) return null;
  const at = i => flat.map(p => p[i]);
  return [0, 1].map(i => (Math.min(...at(i)) + Math.max(...at(i))) / 2);
}

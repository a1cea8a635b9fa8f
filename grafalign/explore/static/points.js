// Points of one's own classes, for `grafalign tune-words`: clicked on the map, saved as GeoJSON.
import { get } from '/static/api.js';

const $ = id => document.getElementById(id);

export class Points {
  constructor(chart, fields, say) {
    this.chart = chart;
    this.say = say;
    this.features = [];
    this.doubts = [];
    $('classes').onchange = () => this.listClasses();
    $('middle').onclick = () => { const { lng, lat } = chart.map.getCenter(); this.add([lng, lat]); };
    $('clear').onclick = () => { this.features = []; this.doubts = []; this.draw(); };
    $('doubts').onclick = () => this.ask();
    $('doubts').disabled = !fields;
    this.draw();
  }

  get classes() { return $('classes').value.split(',').map(name => name.trim()).filter(Boolean); }

  listClasses() {
    $('class').replaceChildren(...this.classes.map(name => new Option(name, name)));
  }

  add([lon, lat]) {
    const name = $('class').value;
    if (!name) { this.say('Write the classes first, separated by commas.', true); return; }
    lon = ((((lon + 180) % 360) + 360) % 360) - 180;
    this.features.push({ type: 'Feature', properties: { class: name }, geometry: { type: 'Point', coordinates: [lon, lat] } });
    this.draw();
  }

  async ask() {
    try {
      const found = await get(`/api/doubts/0?words=${encodeURIComponent(this.classes.join(','))}`);
      this.doubts = found.map(({ lon, lat, between }) => ({ type: 'Feature', properties: { doubt: true, between }, geometry: { type: 'Point', coordinates: [lon, lat] } }));
      this.draw();
      this.say(`${found.length} places where the model hesitates between two of your classes.`);
    } catch (error) { this.say(error.message, true); }
  }

  draw() {
    this.chart.ready.then(() => this.chart.points([...this.features, ...this.doubts]));
    const go = (text, [lon, lat]) => {
      const item = document.createElement('li'), button = document.createElement('button');
      button.type = 'button';
      button.textContent = `${text}: ${lat.toFixed(5)}, ${lon.toFixed(5)}`;
      button.onclick = () => this.chart.map.easeTo({ center: [lon, lat], zoom: Math.max(14, this.chart.map.getZoom()), duration: 300 });
      item.append(button);
      return item;
    };
    $('marked').replaceChildren(
      ...this.features.map(f => go(f.properties.class, f.geometry.coordinates)),
      ...this.doubts.map(f => go(f.properties.between, f.geometry.coordinates)));
    const content = JSON.stringify({ type: 'FeatureCollection', features: this.features });
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(new Blob([content], { type: 'application/geo+json' }));
    $('save').href = this.url;
    $('save').hidden = !this.features.length;
  }
}

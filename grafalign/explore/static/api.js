// What the page asks the server for. Errors carry the server's sentence.

async function answered(response) {
  if (response.ok) return response.json();
  let sentence = `The server says ${response.status}.`;
  try { sentence = (await response.json()).error ?? sentence; } catch { /* no JSON */ }
  throw new Error(sentence);
}

export const get = async path => answered(await fetch(path));

export const post = async (path, content, signal) => answered(await fetch(path, {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(content), signal,
}));

export function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(',')[1]);
    reader.onerror = () => failed(new Error('The picture cannot be read.'));
    reader.readAsDataURL(file);
  });
}

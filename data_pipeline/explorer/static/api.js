// The server's routes. Every answer that is no success becomes an Error with the server's own sentence.

async function answer(response) {
  if (response.ok) return response;
  let reason = `The server answered ${response.status}.`;
  try {
    reason = (await response.json()).error ?? reason;
  } catch { /* not JSON: the status is all there is */ }
  throw new Error(reason);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer. Is it still running?");
  }
  return answer(response);
}

async function post(path, value, signal) {
  const headers = { "content-type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(value), signal });
}

export const info = async () => (await ask("api/info")).json();
export const search = async (request, signal) => (await post("api/search", request, signal)).json();
export const facets = async (filters, signal) => (await post("api/facets", { filters }, signal)).json();
export const sample = async (uid) => (await ask(`api/samples/${uid}`)).json();
export const funnel = async () => (await ask("api/funnel")).json();
export const embedImage = async (file) =>
  (await (await ask("api/embeddings/image", { method: "POST", body: file })).json()).embedding;
export const picture = (uid, size) => `api/images/${uid}?size=${size}`;

export async function exportFile(request) {
  const response = await post("api/export", request);
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = `explorer.${request.format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  return Number(response.headers.get("x-rows"));
}

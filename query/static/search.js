"use strict";
// The search page. Everything that comes from the stream is set as text or through encodeURIComponent, never as HTML: ids are hostile.
const page = Object.fromEntries(["search", "text", "collection", "field", "filter", "image", "drop-image", "message", "summary", "freshness", "hits", "more", "hit"]
  .map((id) => [id, document.getElementById(id)]));
const PAGE_SIZE = 24;
let turn = 0; // only the newest request may draw
let last = null;

async function call(method, path, body) {
  const options = { method, headers: body ? { "content-type": "application/json" } : {}, body: body ? JSON.stringify(body) : undefined };
  let answer;
  try {
    answer = await (await fetch(path, options)).json();
  } catch {
    throw new Error("The service does not answer. Check that it runs, then search again.");
  }
  const error = answer.status && answer.status.error;
  if (error) throw new Error([error.message, error.hint].filter(Boolean).map(sentence).join(" "));
  return answer;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const base = () => `/collections/${encodeURIComponent(page.collection.value)}`;
const pointPath = (id) => `${base()}/points/${encodeURIComponent(id)}`;

function parseFilter(text) {
  const trimmed = text.trim();
  if (!trimmed) return undefined;
  if (trimmed.startsWith("{")) {
    try { return JSON.parse(trimmed); } catch { throw new Error("The filter is not JSON. Write name=value, name=value."); }
  }
  const must = trimmed.split(",").filter((part) => part.trim()).map((part) => {
    const at = part.indexOf("=");
    if (at < 1) throw new Error("The filter needs the form name=value, name=value.");
    return { key: part.slice(0, at).trim(), match: { value: plainValue(part.slice(at + 1).trim(), part.slice(0, at).trim()) } };
  });
  return { must };
}

let kinds = {};
function plainValue(text, key) {
  const kind = (kinds[key] || "").replace("[]", "");
  if (kind === "keyword" || kind === "text" || kind === "datetime") return text;
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function readBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).split(",", 2)[1] || "");
    reader.onerror = () => reject(new Error("The picture cannot be read. Choose it again."));
    reader.readAsDataURL(file);
  });
}

async function queryOf(text, file) {
  if (!file && text.startsWith("id:")) return text.slice(3).trim();
  if (!file) return text ? { text } : undefined;
  const image = await readBase64(file);
  return text ? { text, image } : { image };
}

async function search(query, offset = 0) {
  const mine = ++turn;
  page.message.hidden = true;
  page.hits.classList.add("stale");
  page.hits.setAttribute("aria-busy", "true");
  try {
    const body = { limit: PAGE_SIZE, offset, with_payload: true, with_lineage: true, using: page.field.value || undefined, filter: parseFilter(page.filter.value) };
    body.query = query === null ? await queryOf(page.text.value.trim(), page.image.files[0]) : query;
    const answer = await call("POST", `${base()}/points/query`, body);
    if (mine !== turn) return;
    last = { query: body.query, next: offset + answer.result.points.length };
    if (!offset) page.hits.replaceChildren();
    answer.result.points.forEach((point) => page.hits.append(card(point, body.query !== undefined)));
    showFreshness(answer, offset);
    page.more.hidden = answer.result.points.length < PAGE_SIZE;
    remember();
  } catch (error) {
    if (mine !== turn) return;
    if (!offset) page.hits.replaceChildren();
    page.more.hidden = true;
    page.summary.textContent = "";
    page.freshness.textContent = "";
    page.message.textContent = error.message;
    page.message.hidden = false;
  } finally {
    if (mine === turn) {
      page.hits.classList.remove("stale");
      page.hits.removeAttribute("aria-busy");
    }
  }
}

function showFreshness(answer, offset) {
  const behind = answer.freshness.staleness_ms < 1 ? "level with the stream" : `${duration(answer.freshness.staleness_ms)} behind the stream`;
  const rows = answer.usage && answer.usage.searched_rows;
  const loaded = answer.freshness.coverage < 1 ? `, ${Math.floor(answer.freshness.coverage * 100)} % loaded` : "";
  const took = `${(answer.time * 1000).toFixed(answer.time < 0.01 ? 1 : 0)} ms`;
  page.freshness.textContent = rows === undefined ? behind + loaded : `searched ${rows.toLocaleString()} ${rows === 1 ? "row" : "rows"} in ${took}, ${behind}${loaded}`;
  const shown = offset + answer.result.points.length;
  page.summary.textContent = shown ? `${shown} ${shown === 1 ? "result" : "results"} shown` : "Nothing found. Try other words, or another field or filter.";
}

function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 120000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60000)} min`;
}

function card(point, scored) {
  const made = page.hit.content.firstElementChild.cloneNode(true);
  const { text, media_type: kind, event_time: time, ...attributes } = point.payload;
  const part = (name) => made.querySelector(`.${name}`);
  const link = part("picture");
  part("caption").textContent = text || point.id;
  made.title = point.id;
  part("attributes").textContent = Object.entries(attributes).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
  part("score").textContent = scored ? `score ${point.score.toFixed(3)}` : "";
  part("lineage").textContent = `${point.lineage.topic}/${point.lineage.partition}/${point.lineage.offset}`;
  part("lineage").title = `produced ${point.lineage.produced_at || "at an unknown time"}, in ${point.lineage.segment ? `segment ${point.lineage.segment}` : "the tail"}`;
  if (kind && kind.startsWith("image/")) {
    const image = made.querySelector("img");
    image.alt = text || point.id;
    image.addEventListener("error", () => link.classList.add("empty"));
    image.src = `${pointPath(point.id)}/thumbnail?size=320`;
    link.href = `${pointPath(point.id)}/media`;
  } else {
    link.classList.add("empty");
  }
  part("like").setAttribute("aria-label", `More like ${text || point.id}`);
  part("like").addEventListener("click", () => { page.text.value = `id:${point.id}`; dropImage(); search(point.id).then(() => page.hits.focus()); });
  return made;
}

function dropImage() {
  page.image.value = "";
  page["drop-image"].hidden = true;
}

async function chooseCollection(field) {
  const about = (await call("GET", base())).result;
  kinds = about.attributes;
  const names = Object.keys(about.fields);
  page.field.replaceChildren(...names.map((name) => new Option(about.fields[name].encoder ? `${name} (${about.fields[name].encoder})` : `${name} (vectors)`, name)));
  page.field.value = names.includes(field) ? field : names.includes("fused") ? "fused" : names[0];
}

function remember() {
  const state = new URLSearchParams({ c: page.collection.value, f: page.field.value });
  if (page.text.value) state.set("q", page.text.value);
  if (page.filter.value) state.set("filter", page.filter.value);
  history.replaceState(null, "", `?${state}`);
}

function fail(error) {
  page.message.textContent = error.message;
  page.message.hidden = false;
}

async function start() {
  const state = new URLSearchParams(location.search);
  const names = (await call("GET", "/collections")).result.collections.map((entry) => entry.name);
  page.collection.replaceChildren(...names.map((name) => new Option(name, name)));
  if (!names.length) {
    page.summary.textContent = "There is no collection yet. Create one with: headwater collection create NAME";
    return;
  }
  if (names.includes(state.get("c"))) page.collection.value = state.get("c");
  page.text.value = state.get("q") || "";
  page.filter.value = state.get("filter") || "";
  await chooseCollection(state.get("f"));
  await search(null);
}

page.search.addEventListener("submit", (event) => { event.preventDefault(); search(null); });
page.collection.addEventListener("change", () => chooseCollection(null).then(() => search(null)).catch(fail));
page.field.addEventListener("change", () => search(null));
page.image.addEventListener("change", () => { page["drop-image"].hidden = !page.image.files.length; search(null); });
page["drop-image"].addEventListener("click", () => { dropImage(); search(null); });
page.more.addEventListener("click", () => { if (last) search(last.query === undefined ? null : last.query, last.next); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName)) { event.preventDefault(); page.text.select(); }
});
start().catch(fail);

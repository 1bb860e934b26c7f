/* What the pages have in common: words by language, a key that is typed once, and requests to the service. */

import { WORDS } from "./words.js";

const STORED = "edgeface-key", BASE = "api/edgeface/v1/";
const asked = new URLSearchParams(location.search);
let language = "en", key = "";

export { WORDS, asked };
export const at = (id) => document.getElementById(id);

/* Elements */

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [each, value] of Object.entries(attributes)) {
    if (each.startsWith("on")) made.addEventListener(each.slice(2), value);
    else if (each === "word") say(made, value);
    else if (value === true) made.setAttribute(each, "");
    else if (value !== false && value !== null) made.setAttribute(each, value);
  }
  made.append(...children.filter((each) => each !== null));
  return made;
}

/* A label, which names the control that follows in it. */
export function field(id, control) {
  return el("label", { class: "field" }, el("span", { word: id }), control);
}

export function button(id, onclick, kind = "") {
  return el("button", { type: "button", word: id, class: kind, onclick });
}

/* Words */

export function word(id, values = {}) {
  return WORDS[language][id].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/* Write a word into an element, and again whenever the language changes. */
export function say(element, id, values = {}) {
  if (element.dataset.word === id && element.dataset.values === JSON.stringify(values)) return; /* not read out again */
  element.dataset.word = id;
  element.dataset.values = JSON.stringify(values);
  element.textContent = word(id, values);
}

export function unsay(element) {
  element.replaceChildren();
  delete element.dataset.word;
}

export function when(text, options = { dateStyle: "medium", timeStyle: "medium" }) {
  return text === null ? "–" : new Intl.DateTimeFormat(language, options).format(new Date(text));
}

export const day = (text) => when(text, { dateStyle: "long" });
export const tongue = () => language;

function choose(wanted) {
  language = wanted.map((each) => each.toLowerCase().split("-")[0]).find((each) => Object.hasOwn(WORDS, each)) || "en";
  document.documentElement.lang = language;
  document.documentElement.dir = word("dir");
  for (const each of document.querySelectorAll("[data-word]")) {
    each.textContent = word(each.dataset.word, JSON.parse(each.dataset.values || "{}"));
  }
  at("language").value = language;
  document.dispatchEvent(new Event("language"));
}

/* Call once the page listens to the event "language". */
export function begin_speaking() {
  for (const [code, words] of Object.entries(WORDS)) {
    const option = new Option(words.called, code);
    option.lang = code;
    at("language").append(option);
  }
  at("language").addEventListener("change", () => {
    asked.set("lang", at("language").value);
    history.replaceState(null, "", `?${asked}${location.hash}`);
    choose([at("language").value]);
  });
  choose([asked.get("lang") || "", ...navigator.languages]);
}

/* The key */

/* Ask for the key, unless this tab keeps one; `open` is called with each that is given. */
export function use_key(open) {
  at("leave").addEventListener("click", () => lose_key(""));
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    key = at("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) return lose_key("refused");
    if (at("keep").checked) sessionStorage.setItem(STORED, key);
    return enter(open);
  });
  key = sessionStorage.getItem(STORED) || "";
  if (key) enter(open);
  else lose_key("");
}

function enter(open) {
  at("ask").hidden = true;
  at("leave").hidden = false;
  at("key").value = "";
  open();
}

/* Forget the key, and ask for another one. */
export function lose_key(why) {
  key = "";
  sessionStorage.removeItem(STORED);
  if (why) say(at("why"), why);
  else unsay(at("why"));
  at("ask").hidden = false;
  at("leave").hidden = true;
  document.dispatchEvent(new Event("locked"));
  at("key").value = "";
  at("key").focus();
}

/* Requests */

/* What the service refuses, or that it cannot be reached (status 0). */
export class Refusal extends Error {
  constructor(status, code, detail, errors = []) {
    super(detail);
    Object.assign(this, { status, code, errors });
  }
}

/* Fetch a path below the API; a key that is refused is asked for again. */
export async function fetch_from(path, { headers = {}, ...options } = {}) {
  const sent = key ? { ...headers, "x-api-key": key } : headers;
  const answer = await fetch(BASE + path, { headers: sent, cache: "no-store", redirect: "error", ...options });
  if (answer.status === 401) lose_key("refused");
  return answer;
}

/* Return the answer's JSON, or a Blob of what is none; `Refusal` for an error. */
export async function request(path, { json, ...options } = {}) {
  if (json !== undefined) Object.assign(options, { body: JSON.stringify(json), headers: { "content-type": "application/json" } });
  let answer;
  try {
    answer = await fetch_from(path, options);
  } catch (error) {
    throw new Refusal(0, "away", String(error.message));
  }
  const plain = /[/+]json$/.test(answer.headers.get("content-type") || "");
  const found = plain ? await answer.json() : await answer.blob();
  if (answer.ok) return found;
  throw new Refusal(answer.status, found.code || "refused", found.detail || `HTTP ${answer.status}`, found.errors);
}

/* Say in an element with role "alert" why something failed; the service words the rest in English. */
export function complain(place, error) {
  const known = `problem-${error.code}`;
  const id = Object.hasOwn(WORDS.en, known) ? known : "problem";
  say(place, id, { detail: error.message, name: (error.errors || []).map((each) => each.name || each.id).join(", ") });
}

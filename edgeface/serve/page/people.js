/* People: search, correct a wrong name, groups, metadata, templates, and forgetting with its proof. */

import { button, complain, day, el, field, request, say, unsay } from "./common.js";
import { proof_of, sure } from "./forget.js";

const PAGE = 50;

export function show_people(place, gallery) {
  const path = `galleries/${encodeURIComponent(gallery)}/people`;
  const name = el("input", { type: "search", id: "search", maxlength: "200", dir: "auto" });
  const label = el("input", { type: "search", id: "group", maxlength: "200", dir: "auto" });
  const list = el("ul", { class: "list" }), wrong = el("p", { role: "alert", class: "wrong" }), found = el("p", { role: "status" });
  const more = button("more", () => fill(false)), person = el("div", { class: "person" });
  let next = 0, asked = 0, count = 0;

  async function fill(anew) {
    const number = ++asked, query = new URLSearchParams({ limit: PAGE, after: anew ? 0 : next });
    if (name.value.trim()) query.set("name", name.value.trim());
    if (label.value.trim()) query.set("label", label.value.trim());
    try {
      const page = await request(`${path}?${query}`);
      if (number !== asked) return; /* another search has begun */
      if (anew) list.replaceChildren();
      count = (anew ? 0 : count) + page.people.length;
      list.append(...page.people.map((each) => entry(each)));
      next = page.next;
      more.hidden = next === null;
      say(found, "found", { count: count + (next === null ? "" : "+") });
      unsay(wrong);
    } catch (error) {
      complain(wrong, error);
    }
  }

  function entry(each) {
    const open = el("button", { type: "button", class: "entry", onclick: () => show_person(person, `${path}/${each.id}`, () => fill(true)) },
      el("bdi", { class: "who" }, each.name), el("span", { class: "groups" }, each.labels.join(", ")));
    return el("li", {}, open);
  }

  const search = el("form", { class: "row", role: "search", onsubmit: (event) => { event.preventDefault(); fill(true); } },
    field("search", name), field("group", label), el("button", { type: "submit", word: "find" }));
  const by_pin = el("input", { type: "password", inputmode: "numeric", autocomplete: "off", maxlength: "12", dir: "ltr", id: "by-pin", required: true, pattern: "[0-9]{4,12}" });
  const who = el("input", { maxlength: "200", dir: "auto", id: "by-pin-name", required: true, autocomplete: "off" });
  const add = el("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    try {
      const made = await request(`galleries/${encodeURIComponent(gallery)}/people-by-pin`, { method: "POST", json: { name: who.value.trim(), pin: by_pin.value } });
      add.reset();
      show_person(person, `${path}/${made.id}`, () => fill(true));
      fill(true);
    } catch (error) {
      complain(wrong, error);
    }
  } }, field("name", who), field("pin", by_pin), el("button", { type: "submit", word: "add" }));
  place.append(search, el("details", {}, el("summary", { word: "add-by-pin" }), add), wrong, found, el("div", { class: "columns" }, el("div", {}, list, more), person));
  fill(true);
}

async function show_person(place, path, changed) {
  const wrong = el("p", { role: "alert", class: "wrong" }), saved = el("p", { role: "status", class: "good" });
  let person, kept;
  try {
    [person, kept] = await Promise.all([request(path), request(`${path}/templates`)]);
  } catch (error) {
    complain(wrong, error);
    return place.replaceChildren(wrong);
  }
  const name = el("input", { required: true, maxlength: "200", dir: "auto", value: person.name, id: "person-name" });
  const labels = el("input", { dir: "auto", value: person.labels.join(", "), id: "person-groups" });
  const metadata = el("textarea", { dir: "ltr", rows: "3", spellcheck: "false", id: "person-metadata" });
  metadata.value = JSON.stringify(person.metadata, null, 1);
  const pin = el("input", { type: "password", inputmode: "numeric", autocomplete: "off", maxlength: "12", dir: "ltr", id: "person-pin" });
  const code = el("output", { class: "code", dir: "ltr" });
  const heading = el("h2", { tabindex: "-1" }, el("bdi", {}, person.name)), number = el("p");
  say(number, "pin-number", { number: person.id });

  async function save(event) {
    event.preventDefault();
    let values;
    try {
      values = JSON.parse(metadata.value || "{}");
    } catch {
      return say(wrong, "bad-metadata");
    }
    const groups = labels.value.split(",").map((each) => each.trim()).filter(Boolean);
    return attempt(async () => {
      const done = await request(path, { method: "PATCH", json: { name: name.value.trim(), labels: groups, metadata: values } });
      heading.firstChild.textContent = done.name;
      say(saved, "saved");
      changed();
    });
  }

  async function attempt(work) {
    unsay(wrong);
    unsay(saved);
    try {
      await work();
    } catch (error) {
      complain(wrong, error);
    }
  }

  async function forget() {
    if (!await sure("sure-person", { name: person.name })) return;
    await attempt(async () => {
      const proof = proof_of(await request(path, { method: "DELETE" }));
      place.replaceChildren(proof);
      proof.focus();
      changed();
    });
  }

  /* A PIN, by which people without a face here are known at the door; an empty field removes it. */
  const set_pin = () => attempt(async () => {
    await request(`${path}/pin`, pin.value ? { method: "PUT", json: { pin: pin.value } } : { method: "DELETE" });
    pin.value = "";
    say(saved, "saved");
  });
  const tell_code = () => attempt(async () => { code.textContent = (await request(`${path}/code`, { method: "POST" })).code; });
  const templates = el("ul", { class: "templates" }, ...kept.templates.map((each) => template(each, path, attempt, () => show_person(place, path, changed))));
  place.replaceChildren(el("form", { class: "card", onsubmit: save }, heading,
    field("name", name), field("groups", labels), field("metadata", metadata), wrong, saved, el("button", { type: "submit", word: "save" })),
  el("div", { class: "card" }, el("h3", { word: "consent" }), consent_of(person.consent),
    el("h3", { word: "templates" }), templates,
    el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); set_pin(); } },
      field("new-pin", pin), el("button", { type: "submit", word: "set-pin" })), number, code,
    el("div", { class: "row" }, button("new-code", tell_code), button("forget-person", forget, "danger"))));
  heading.focus();
}

function consent_of(consent) {
  const text = el("p");
  if (!consent) say(text, "no-consent");
  else say(text, consent.expires ? "consent-until" : "consent-given", { version: consent.text_version, day: day(consent.recorded), until: day(consent.expires) });
  return text;
}

function template(each, path, attempt, changed) {
  const text = el("span"), image = el("img", { alt: "" });
  say(text, "template", { id: each.id, day: day(each.created), quality: each.quality === null ? "–" : each.quality.toFixed(2) });
  if (each.has_image) {
    attempt(async () => {
      image.src = URL.createObjectURL(await request(`${path}/templates/${each.id}/image`));
      image.onload = () => URL.revokeObjectURL(image.src);
    });
  }
  const erase = button("forget-template", async () => {
    if (!await sure("sure-template", {})) return;
    await attempt(async () => { await request(`${path}/templates/${each.id}`, { method: "DELETE" }); changed(); });
  });
  return el("li", {}, each.has_image ? image : null, text, erase);
}

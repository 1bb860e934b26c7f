/* The desk, where people are enrolled, found, corrected and forgotten; and the page /forget, which needs a key of nobody. */

import { at, begin_speaking, el, lose_key, request, use_key, word } from "./common.js";
import { show_enrol } from "./enrol.js";
import { show_events } from "./events.js";
import { show_forget } from "./forget.js";
import { show_health } from "./health.js";
import { show_people } from "./people.js";

const VIEWS = { enrol: show_enrol, people: show_people, events: show_events, health: show_health };
const MAY = { enrol: ["enrol", "people", "events"], admin: ["enrol", "people", "events", "health"] };
let views = [], shown = "", leave = () => {};

/* A view gets its place and the gallery, and returns what is to be called when another one follows. */
function show(again = false) {
  const wanted = location.hash.slice(1), name = views.includes(wanted) ? wanted : views[0];
  leave();
  leave = () => {};
  shown = name;
  for (const each of at("nav").children) each.ariaCurrent = each.hash === `#${name}` ? "page" : null;
  const heading = el("h1", { tabindex: "-1", word: name }), place = el("section", { class: name });
  at("view").replaceChildren(heading, place);
  name_page();
  if (!again) heading.focus();
  leave = VIEWS[name](place, at("gallery").value) || leave;
}

function name_page() {
  document.title = word(shown || "desk");
  at("nav").setAttribute("aria-label", word("views"));
}

async function open() {
  let own, found;
  try {
    [own, found] = [await request("key"), await request("galleries")];
  } catch (error) {
    if (error.status !== 401) lose_key(error.status === 403 ? "wrong-role" : "away");
    return;
  }
  views = MAY[own.role] || [];
  if (!views.length) return lose_key("wrong-role");
  at("gallery").replaceChildren(...found.galleries.map((each) => new Option(each)));
  at("galleries").hidden = found.galleries.length < 2;
  at("nav").replaceChildren(...views.map((each) => el("a", { href: `#${each}`, word: each })));
  at("nav").hidden = false;
  return show();
}

document.addEventListener("language", () => {
  name_page();
  if (["events", "health"].includes(shown)) show(true); /* for the dates and numbers in them */
});
document.addEventListener("locked", () => {
  leave();
  leave = () => {};
  shown = "";
  views = [];
  at("nav").hidden = at("galleries").hidden = true;
  at("view").replaceChildren();
  name_page();
});
begin_speaking();
if (location.pathname.endsWith("/forget")) {
  shown = "forget";
  at("view").append(el("h1", { word: "forget" }));
  show_forget(at("view"));
  name_page();
} else {
  addEventListener("hashchange", () => { if (views.length) show(); });
  at("gallery").addEventListener("change", () => show(true));
  use_key(open);
}

/* Events: who came when, filtered, and exported. */

import { button, complain, el, field, request, say, unsay, when } from "./common.js";

const KINDS = ["known", "unknown", "inconclusive", "spoof"], PAGE = 200;

export function show_events(place) {
  const from = el("input", { type: "date", id: "from" }), to = el("input", { type: "date", id: "to" });
  const kind = el("select", { id: "kind" }, el("option", { value: "", word: "all" }), ...KINDS.map((each) => el("option", { value: each, word: `kind-${each}` })));
  const camera = el("input", { id: "camera", maxlength: "63", dir: "auto", autocomplete: "off" });
  const wrong = el("p", { role: "alert", class: "wrong" }), count = el("p", { role: "status" }), rows = el("tbody");
  const more = button("more", () => fill(false));
  let next = 0, asked = 0, total = 0;
  more.hidden = true;
  from.valueAsDate = to.valueAsDate = new Date(Date.now() - new Date().getTimezoneOffset() * 60000);

  function query() {
    const made = new URLSearchParams(), last = new Date(`${to.value}T00:00`);
    if (from.value) made.set("since", new Date(`${from.value}T00:00`).toISOString());
    if (to.value) made.set("until", new Date(last.setDate(last.getDate() + 1)).toISOString());
    if (kind.value) made.set("kind", kind.value);
    if (camera.value.trim()) made.set("camera", camera.value.trim());
    return made;
  }

  async function read(after) {
    const asking = query();
    asking.set("after", after);
    asking.set("limit", PAGE);
    return request(`kiosk/events?${asking}`);
  }

  async function fill(anew) {
    const number = ++asked;
    unsay(wrong);
    try {
      const page = await read(anew ? 0 : next);
      if (number !== asked) return;
      if (anew) rows.replaceChildren();
      total = (anew ? 0 : total) + page.events.length;
      rows.append(...page.events.map(row));
      next = page.next;
      more.hidden = next === null;
      say(count, "found", { count: total + (next === null ? "" : "+") });
    } catch (error) {
      complain(wrong, error);
    }
  }

  /* All that the filters leave, and not only what is shown. */
  async function save(format) {
    const all = [];
    try {
      for (let after = 0; after !== null;) {
        const page = await read(after);
        all.push(...page.events);
        after = page.next;
      }
    } catch (error) {
      return complain(wrong, error);
    }
    const text = format === "csv" ? csv_of(all) : all.map((each) => `${JSON.stringify(each)}\n`).join("");
    const link = el("a", { download: `events-${from.value || "all"}-${to.value || "all"}.${format}` });
    link.href = URL.createObjectURL(new Blob([text], { type: format === "csv" ? "text/csv;charset=utf-8" : "application/x-ndjson" }));
    link.click();
    return setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const filters = el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); fill(true); } },
    field("from", from), field("to", to), field("outcome", kind), field("camera", camera), el("button", { type: "submit", word: "find" }));
  const head = ["time", "camera", "outcome", "name", "score", "why"].map((each) => el("th", { scope: "col", word: each }));
  place.append(filters, wrong, el("div", { class: "row" }, count, el("span", { class: "gap" }), button("csv", () => save("csv")), button("ndjson", () => save("ndjson"))),
    el("div", { class: "wide", role: "region", tabindex: "0", "aria-labelledby": "events-caption" },
      el("table", {}, el("caption", { class: "unseen", id: "events-caption", word: "events" }), el("thead", {}, el("tr", {}, ...head)), rows)), more);
  fill(true);
}

function row(event) {
  const score = event.score === null ? "–" : event.score.toFixed(2);
  return el("tr", { class: event.kind }, el("td", {}, when(event.time)), el("td", {}, el("bdi", {}, event.camera)),
    el("td", {}, el("span", { word: `kind-${event.kind}` })), el("td", {}, el("bdi", {}, event.name || "–")),
    el("td", { class: "number" }, score), el("td", { class: "why", lang: "en" }, el("bdi", {}, event.reason)));
}

/* As `edgeface events export` writes it: a value that a spreadsheet would compute is text. */
function csv_of(events) {
  const names = ["sequence", "id", "time", "camera", "kind", "person_id", "name", "score", "threshold", "contract_id", "frames", "liveness", "reason"];
  const cell = (value) => {
    const text = value === null ? "" : String(value), safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [names, ...events.map((each) => names.map((name) => each[name]))].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

/* Health: whether the service can answer, its cameras, models and galleries, how long it takes, and what waits. */

import { complain, el, fetch_from, request, say, unsay, word } from "./common.js";

const EVERY = 5000; /* milliseconds */

export function show_health(place) {
  const wrong = el("p", { role: "alert", class: "wrong" }), shown = el("div", { class: "cards" });
  let timer = null, ended = false;

  async function renew() {
    try {
      const [ready, models, metrics, doors] = await Promise.all([read_ready(), request("models"), read_metrics(), read_cameras()]);
      if (ended) return;
      unsay(wrong);
      shown.replaceChildren(service_card(ready, metrics), ...snapshot_cards(metrics), ...camera_cards(doors), ...models.models.map((each) => model_card(each, metrics)));
    } catch (error) {
      if (ended) return;
      complain(wrong, error);
    }
    timer = setTimeout(renew, EVERY);
  }

  place.append(wrong, shown);
  renew();
  return () => { ended = true; clearTimeout(timer); };
}

async function read_ready() {
  const answer = await fetch("health/ready", { cache: "no-store" });
  return answer.json();
}

/* No kiosk is no error here. */
async function read_cameras() {
  try {
    return await request("kiosk/cameras");
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/* Samples of Prometheus by name: [labels, value]; a key of one gallery is not told them. */
async function read_metrics() {
  const answer = await fetch_from("../../../metrics"), samples = new Map();
  if (!answer.ok) return samples;
  for (const line of (await answer.text()).split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push([found[2] || "", Number(found[3])]);
  }
  return samples;
}

function sum(metrics, name, label = "") {
  return (metrics.get(name) || []).filter(([labels]) => labels.includes(label)).reduce((all, [, value]) => all + value, 0);
}

/* Mean milliseconds of a histogram since the start. */
function mean(metrics, name, label = "") {
  const count = sum(metrics, `${name}_count`, label);
  return count ? `${(1000 * sum(metrics, `${name}_sum`, label) / count).toFixed(1)} ms` : "–";
}

function card(heading, state, ...rows) {
  return el("section", { class: `card ${state}` }, el("h2", {}, heading),
    el("dl", {}, ...rows.filter(Boolean).map(([id, ...value]) => el("div", {}, el("dt", { word: id }), el("dd", {}, ...value.map((each) => el("bdi", {}, each)))))));
}

function told(id) {
  return el("span", { word: id });
}

function service_card(ready, metrics) {
  const faults = [...ready.reasons, ...ready.degraded];
  const rows = [["state", told(ready.ready ? "is-ready" : "is-not-ready")]];
  if (faults.length) rows.push(["faults", faults.join("; ")]);
  if (metrics.size) {
    rows.push(["requests", String(sum(metrics, "edgeface_requests_total"))],
      ["latency", mean(metrics, "edgeface_request_duration_seconds", "/identify")],
      ["queue", `${sum(metrics, "edgeface_queue_requests")}`],
      ["queue-wait", mean(metrics, "edgeface_queue_wait_seconds")],
      ["queue-refused", String(sum(metrics, "edgeface_queue_refused_total"))]);
  }
  return card(told("service"), faults.length ? "bad" : "good", ...rows);
}

/* Of galleries on a server that is asked by way of a snapshot. */
function snapshot_cards(metrics) {
  return (metrics.get("edgeface_gallery_snapshot_age_seconds") || []).map(([labels, age]) => {
    const name = /gallery="([^"]*)"/.exec(labels)[1], waiting = sum(metrics, "edgeface_gallery_queue", `${labels},state="queued"`);
    const conflicts = sum(metrics, "edgeface_gallery_queue", `${labels},state="conflict"`), fresh = age < 10 && !conflicts;
    return card(el("bdi", {}, name), fresh ? "good" : "bad", ["snapshot-age", Number.isFinite(age) ? `${age.toFixed(0)} s` : "–"],
      ["awaits-server", String(waiting)], ["in-conflict", String(conflicts)]);
  });
}

function camera_cards(doors) {
  if (!doors) return [];
  const cards = Object.entries(doors.cameras).map(([name, each]) => card(el("bdi", {}, name), each.state === "connected" ? "good" : "bad",
    ["state", told(`camera-${each.state}`)], ["source", each.source],
    ["newest", each.age === null ? "–" : `${each.age.toFixed(1)} s`], ["analyzed", String(each.analyzed)], ["dropped", String(each.dropped)],
    ["latency", `${(1000 * each.latency).toFixed(0)} ms`], ["slowest", `${(1000 * each.slowest).toFixed(0)} ms`], each.error ? ["faults", each.error] : null));
  const door = card(told("doors"), doors.open ? "good" : "bad", ["state", told(doors.open ? "is-watched" : "is-not-watched")], doors.reason ? ["faults", doors.reason] : null);
  return [door, ...cards];
}

function model_card(model, metrics) {
  return card(el("bdi", {}, model.model), "good", ["model", model.name], ["contract", el("code", {}, model.contract_id)],
    ["device", `${model.devices.join(", ")}, ${model.precision}`], ["detector", model.detector || "–"],
    ["inference", mean(metrics, "edgeface_inference_duration_seconds", `model="${model.model}"`)],
    ["galleries", model.galleries.join(", ")]);
}

/* Shows what is decided at a door. Whatever is lost, late or unknown, it shows "closed", and never an old decision. */

import { OwnCamera, ServerCamera, camera_problem } from "./camera.js";
import { WORDS, asked, at, begin_speaking, complain, fetch_from, lose_key, request, say, unsay, use_key, word } from "./common.js";

const SILENCE = 12000, SHOWN = 4000, STALE = 5; /* milliseconds without a message; of a decision; seconds */
const BETWEEN = 120, AGAIN = 2000; /* milliseconds between two pictures; after one that failed */
const camera = asked.get("camera"); /* null: all cameras */
let state = "closed", name = "", last = "", open = false, heard = 0;
let following = null, sound = null, ends = 0, looking = "", looked_at = "";

function render() {
  document.title = word("door");
  document.body.dataset.state = state;
  at("icon").setAttribute("href", "#icon-" + state);
  at("title").textContent = word(state);
  say(at("detail"), `${state}-detail`);
  if (!name) return;
  const who = document.createElement("bdi"); /* a name may run the other way */
  who.textContent = name;
  at("title").append(document.createElement("br"), who);
}

function show(next, who = "") {
  if (state === next && name === who) return; /* so that it is not read out again */
  state = next;
  name = who;
  render();
}

function stop() {
  if (following) following.abort();
  following = null;
  last = "";
  at("shown").hidden = at("by-pin").hidden = true;
  at("pin-box").close();
  look("", null);
}

function begin() {
  at("shown").hidden = false;
  open = false;
  show("closed");
  following = new AbortController();
  follow(following);
}

/* One controller lives as long as a key; each connection has its own, which the silence ends. */
async function follow(mine) {
  for (let failures = 0; !mine.signal.aborted; failures += 1) {
    const connection = new AbortController(), leave = () => connection.abort();
    mine.signal.addEventListener("abort", leave);
    heard = performance.now();
    const silence = setInterval(() => { if (performance.now() - heard > SILENCE) leave(); }, 500);
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await fetch_from("kiosk/stream", { headers, signal: connection.signal });
      if (answer.status === 403) return lose_key("refused");
      if (answer.status === 404) return lose_key("none");
      if (answer.status === 422) last = "";
      if (answer.ok) await read(answer.body.getReader(), () => { failures = 0; });
    } catch { /* tried again below */ } finally {
      clearInterval(silence);
      mine.signal.removeEventListener("abort", leave);
      leave();
    }
    if (mine.signal.aborted) return undefined;
    open = false;
    show("closed");
    await new Promise((done) => setTimeout(done, Math.min(1000 * 2 ** failures, 15000)));
  }
  return undefined;
}

async function read(reader, begun) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard = performance.now();
    begun();
    text += decoder.decode(value, { stream: true });
    const messages = text.split("\n\n");
    text = messages.pop();
    for (const each of messages) take(each);
  }
}

function take(message) {
  const fields = Object.fromEntries(message.split("\n").map((line) => {
    const colon = line.indexOf(": ");
    return [line.slice(0, colon), line.slice(colon + 2)];
  }));
  const data = JSON.parse(fields.data);
  if (fields.event === "status") return status(data);
  if (fields.event !== "visit") return undefined;
  last = fields.id;
  const here = camera === null || data.camera === camera;
  return here && open && data.age < STALE ? decide(data) : undefined;
}

function status(data) {
  const states = Object.entries(data.cameras).filter(([each]) => camera === null || each === camera);
  open = data.open && states.length > 0 && states.every(([, each]) => each === "connected");
  looked_at = states.length === 1 ? states[0][0] : "";
  if (looked_at) look(looked_at, (data.pictures || {})[looked_at]);
  at("by-pin").hidden = !(data.pins && looked_at);
  if (!open) show("closed");
  else if (state === "closed") show("wait");
}

function decide(visit) {
  if (!Object.hasOwn(WORDS.en, visit.kind + "-detail")) return;
  show(visit.kind, visit.kind === "known" ? visit.name || "" : "");
  play(visit.kind === "known");
  clearTimeout(ends);
  ends = setTimeout(() => { if (open) show("wait"); }, SHOWN);
}

/* Show the picture of the server's camera, or send those of this browser's own; of one camera only. */
async function look(name, picture) {
  const wanted = picture ? `${picture} ${name}` : "";
  if (looking === wanted) return;
  looking = wanted;
  at("look").hidden = at("own").hidden = at("picture").hidden = true;
  if (!wanted) return;
  const still = () => looking === wanted;
  if (picture === "shown") await show_pictures(new ServerCamera(at("picture"), name), still);
  else await send_pictures(`kiosk/cameras/${encodeURIComponent(name)}/picture`, still);
}

async function show_pictures(camera, still) {
  while (still()) {
    const shown = await camera.picture().catch(() => null);
    if (still()) at("look").hidden = at("picture").hidden = !shown;
    await new Promise((done) => setTimeout(done, shown ? BETWEEN : AGAIN));
  }
  camera.close();
}

async function send_pictures(path, still) {
  let own = null;
  while (still()) {
    let pause = AGAIN;
    try {
      if (!own) own = await OwnCamera.open(at("own"));
      at("look").hidden = at("own").hidden = false;
      const picture = await own.picture();
      if (!picture) throw new DOMException("the camera has ended", "NotFoundError");
      const answer = still() && await fetch_from(path, { method: "POST", body: picture, headers: { "content-type": "image/jpeg" } });
      if (answer.ok) pause = BETWEEN;
    } catch (error) {
      if (error.name in { NotAllowedError: 0, SecurityError: 0, NotFoundError: 0, NotReadableError: 0 }) {
        if (own) own.close();
        own = null;
        at("look").hidden = at("own").hidden = true;
        if (still() && state === "closed") say(at("detail"), camera_problem(error));
      }
    }
    await new Promise((done) => setTimeout(done, pause));
  }
  if (own) own.close();
}

/* Known: two rising notes; anything else: one low one. */
function play(good) {
  if (!sound) return;
  (good ? [660, 990] : [196]).forEach((frequency, number) => {
    const tone = sound.createOscillator(), volume = sound.createGain(), from = sound.currentTime + number * 0.18;
    tone.frequency.value = frequency;
    volume.gain.setValueAtTime(0.2, from);
    volume.gain.exponentialRampToValueAtTime(0.001, from + (good ? 0.16 : 0.5));
    tone.connect(volume).connect(sound.destination);
    tone.start(from);
    tone.stop(from + 0.5);
  });
}

at("sound").addEventListener("click", () => {
  if (sound) sound.close();
  sound = sound ? null : new AudioContext();
  at("sound").setAttribute("aria-pressed", String(sound !== null));
});
/* The PIN way: the decision comes by the stream, as all others; the dialog only says what was refused. */
at("by-pin").addEventListener("click", () => {
  at("pin-form").reset();
  unsay(at("pin-wrong"));
  at("pin-box").showModal();
});
at("pin-cancel").addEventListener("click", () => at("pin-box").close());
at("pin-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const json = { person_id: Number(at("number").value), pin: at("pin").value, camera: looked_at };
  at("pin").value = "";
  try {
    await request("kiosk/pin", { method: "POST", json });
    at("pin-box").close();
  } catch (error) {
    complain(at("pin-wrong"), error);
  }
});
document.addEventListener("language", render);
document.addEventListener("locked", stop);
begin_speaking();
use_key(begin);

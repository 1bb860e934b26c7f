/* Enrol a person: consent, three to five photos that pass the gate, and a receipt with a code to be forgotten. */

import { OwnCamera, ServerCamera, camera_problem, server_cameras } from "./camera.js";
import { button, complain, day, el, field, request, say, tongue, unsay, word } from "./common.js";

const LEAST = 3, MOST = 5, APART = 700, TURNED = 6, PATIENCE = 2500; /* photos; milliseconds, degrees, milliseconds */

export function show_enrol(place, gallery) {
  const visit = { gallery, place, camera: null, name: "", consent: null };
  ask_consent(visit);
  return () => close(visit);
}

function close(visit) {
  if (visit.camera) visit.camera.close();
  visit.camera = null;
  if (visit.retell) document.removeEventListener("language", visit.retell);
}

/* What is agreed to */

async function ask_consent(visit) {
  const path = `galleries/${encodeURIComponent(visit.gallery)}`, wrong = el("p", { role: "alert", class: "wrong" });
  let text;
  try {
    [text, { model: visit.model }] = await Promise.all([request(`${path}/consent-text`), request(path)]);
  } catch (error) {
    complain(wrong, error);
    return visit.place.replaceChildren(wrong, button("again", () => ask_consent(visit)));
  }
  const name = el("input", { id: "name", required: true, maxlength: "200", autocomplete: "off", dir: "auto" });
  const agreed = el("input", { type: "checkbox", id: "agreed", required: true });
  const purpose = el("p", { id: "purpose", dir: "auto" }), until = el("li");
  visit.retell = () => tell_purpose(text, purpose, until);
  document.addEventListener("language", visit.retell);
  visit.retell();
  const form = el("form", { class: "card" },
    field("name", name),
    el("fieldset", {}, el("legend", { word: "consent" }), purpose,
      el("ul", {}, el("li", { word: text.keeps_images ? "keeps-images" : "keeps-numbers" }), until, el("li", { word: "withdraw" })),
      el("label", { class: "tick" }, agreed, el("span", { word: "agree" }))),
    wrong, el("button", { type: "submit", word: "to-camera" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    document.removeEventListener("language", visit.retell);
    const shown = Object.hasOwn(text.texts, purpose.lang) || !Object.keys(text.texts).length ? purpose.lang : tongue();
    Object.assign(visit, { name: name.value.trim(), expires: text.expires });
    visit.consent = { text_version: `${text.version}/${shown}`, expires: text.expires };
    take_photos(visit);
  });
  visit.place.replaceChildren(form);
  return name.focus();
}

function tell_purpose(text, purpose, until) {
  const languages = Object.keys(text.texts), there = languages.includes(tongue()) ? tongue() : languages[0];
  purpose.lang = there || tongue();
  purpose.textContent = there ? text.texts[there] : word("consent-text");
  say(until, text.expires ? "kept-until" : "kept-until-withdrawn", { day: text.expires ? day(text.expires) : "" });
}

/* Photos */

async function take_photos(visit) {
  const video = el("video", { muted: true, playsinline: true, "aria-hidden": "true" }), image = el("img", { alt: "" });
  const choice = el("select", { id: "which", onchange: open }, el("option", { value: "", word: "own-camera" })), which = field("camera", choice);
  const hint = el("p", { role: "status", class: "hint" }), count = el("p", { class: "count" });
  const wrong = el("p", { role: "alert", class: "wrong" }), shots = el("ol", { class: "shots" });
  const save = button("save", () => enrol(visit, photos, save, wrong), "main"), photos = [];
  const again = button("again", () => { photos.length = 0; renew(); });
  const renew = () => {
    say(count, "photos", { count: photos.length, least: LEAST, most: MOST });
    shots.replaceChildren(...photos.map((each) => thumbnail(each)));
    save.disabled = photos.length < LEAST;
  };
  visit.place.replaceChildren(el("div", { class: "capture" }, el("div", { class: "mirror" }, video, image),
    el("div", { class: "card" }, which, hint, count, shots, wrong,
      el("div", { class: "row" }, button("cancel", () => { close(visit); ask_consent(visit); }), again, save))));
  renew();
  which.hidden = true;
  server_cameras().then((names) => {
    choice.append(...names.map((each) => el("option", { value: each }, each)));
    which.hidden = !names.length;
  });
  await open();

  async function open() {
    if (visit.camera) visit.camera.close();
    visit.camera = null;
    say(hint, "hint-begin");
    video.hidden = choice.value !== "";
    image.hidden = !video.hidden;
    try {
      visit.camera = choice.value ? new ServerCamera(image, choice.value) : await OwnCamera.open(video);
    } catch (error) {
      say(wrong, camera_problem(error));
      return;
    }
    await guide(visit, visit.camera, photos, hint, wrong, renew);
  }
}

function thumbnail({ blob }) {
  const image = el("img", { alt: "" });
  image.src = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  return el("li", {}, image);
}

/* Look at one picture after the other until the camera is closed; keep those that are good, and differ. */
async function guide(visit, camera, photos, hint, wrong, renew) {
  let taken = 0;
  while (visit.camera === camera) {
    const began = performance.now(), blob = await camera.picture().catch(() => null);
    if (visit.camera !== camera) return;
    if (!blob) say(wrong, "camera-lost"); /* and try again */
    else if (photos.length < MOST) {
      try {
        const found = await request(`analyze?gate=true&model=${encodeURIComponent(visit.model)}`, { method: "POST", body: blob, headers: { "content-type": "image/jpeg" } });
        if (visit.camera !== camera) return;
        const yaw = found.faces.length === 1 && found.faces[0].measurements ? found.faces[0].measurements.yaw : null;
        const fault = fault_of(found) || too_alike(photos, yaw, began - taken);
        if (!fault) {
          photos.push({ blob, yaw });
          taken = began;
          renew();
        }
        say(hint, fault || (photos.length < MOST ? "hint-good" : "hint-done"));
        unsay(wrong);
      } catch (error) {
        complain(wrong, error);
        if (error.status === 401) return;
      }
    } else say(hint, "hint-done");
    await new Promise((done) => setTimeout(done, Math.max(50, 200 - (performance.now() - began))));
  }
}

/* The word that says what to do, by what the service measured; "" for a photo that is good. */
function fault_of({ faces, width, height }) {
  if (!faces.length) return "hint-none";
  if (faces.length > 1) return "hint-many";
  const [{ box, reasons, measurements }] = faces, side = Math.min(box[2] - box[0], box[3] - box[1]), frame = Math.min(width, height);
  if (side < 0.2 * frame) return "hint-closer";
  if (side > 0.9 * frame) return "hint-back";
  if (!measurements) return reasons.length ? "hint-again" : "";
  const { inside, brightness, yaw, pitch, sharpness, covered } = measurements;
  if (inside < 0.95) return "hint-centre";
  if (brightness < 50) return "hint-light";
  if (brightness > 215) return "hint-bright";
  if (yaw > 30) return "hint-right"; /* the nose points to the photo's right, which is the person's left */
  if (yaw < -30) return "hint-left";
  if (pitch > 30) return "hint-up";
  if (pitch < -30) return "hint-down";
  if (!reasons.length) return "";
  if (sharpness < 0.004) return "hint-still";
  return covered.length ? "hint-covered" : "hint-again";
}

/* Photos are to differ: apart in time, and turned a little; after a while any good one will do. */
function too_alike(photos, yaw, waited) {
  if (!photos.length) return "";
  if (waited < APART) return "hint-good";
  const turned = yaw === null || photos.every((each) => each.yaw === null || Math.abs(each.yaw - yaw) > TURNED);
  if (turned || waited > PATIENCE) return "";
  return photos.length % 2 ? "hint-left" : "hint-right";
}

/* What is stored */

async function enrol(visit, photos, save, wrong) {
  save.disabled = true;
  const people = `galleries/${encodeURIComponent(visit.gallery)}/people`, form = new FormData();
  form.append("name", visit.name);
  form.append("consent", JSON.stringify(visit.consent));
  photos.forEach(({ blob }, number) => form.append("photo", blob, `${number + 1}.jpg`));
  try {
    const person = await request(people, { method: "POST", body: form });
    if (person.state) return show_queued(visit, person);
    const { code } = await request(`${people}/${person.id}/code`, { method: "POST" });
    close(visit);
    show_receipt(visit, person, code, await request(`galleries/${encodeURIComponent(visit.gallery)}`));
  } catch (error) {
    complain(wrong, error);
    save.disabled = false;
  }
}

/* The gallery's server is away: who is enrolled has no number yet, and so no code. */
function show_queued(visit, item) {
  const heading = el("h2", { tabindex: "-1" }, el("bdi", {}, item.name));
  close(visit);
  visit.place.replaceChildren(el("div", { class: "card receipt", role: "status" }, heading, el("p", { word: "queued-enrol" }),
    el("div", { class: "row" }, button("next-person", () => ask_consent(visit), "main"))));
  return heading.focus();
}

function show_receipt(visit, person, code, gallery) {
  const row = (id, ...value) => el("div", {}, el("dt", { word: id }), el("dd", {}, ...value));
  const until = el("span"), stored = el("span"), heading = el("h2", { tabindex: "-1", word: "receipt" });
  say(until, visit.expires ? "kept-until" : "kept-until-withdrawn", { day: visit.expires ? day(visit.expires) : "" });
  say(stored, gallery.keeps_images ? "stored-images" : "stored-numbers", { count: person.template_count });
  visit.place.replaceChildren(el("div", { class: "card receipt" }, heading,
    el("dl", {}, row("name", el("bdi", {}, person.name)), row("stored", stored), row("how-long", until),
      row("consent-version", el("bdi", {}, person.consent.text_version)),
      row("code", el("output", { class: "code", dir: "ltr", id: "told-code" }, code))),
    el("p", { word: "code-once" }),
    el("div", { class: "row" }, button("print", () => print()), button("next-person", () => ask_consent(visit), "main"))));
  heading.focus();
}

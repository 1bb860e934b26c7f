/* Forget whoever was told a code. */

import { button, complain, el, field, request, say } from "./common.js";

/* The proof of an erasure, as the service answers it; or that it is queued for the gallery's server. */
export function proof_of(done) {
  if (done.state) return el("div", { class: "proof good", role: "status", tabindex: "-1" }, el("p", { word: "queued-forget" }));
  const files = Object.entries(done.searched).map(([name, bytes]) => el("li", { dir: "ltr" }, `${name}: ${bytes}`));
  return el("div", { class: done.proved ? "proof good" : "proof bad", role: "status", tabindex: "-1" },
    el("h2", { word: done.proved ? "proved" : "not-proved" }),
    told("erased", { templates: done.templates, images: done.images }),
    told("searched", { needles: done.needles }),
    el("ul", {}, ...files),
    told(done.remains.length ? "remains" : "nothing-remains", { places: done.remains.join(", ") }),
    done.unsearched.length ? told("unsearched", { places: done.unsearched.join(", ") }) : null);
}

function told(id, values) {
  const made = el("p");
  say(made, id, values);
  return made;
}

export function show_forget(place) {
  const code = el("input", { id: "code", dir: "ltr", required: true, autocomplete: "off", spellcheck: "false", maxlength: "60", autocapitalize: "characters" });
  const wrong = el("p", { role: "alert", class: "wrong" });
  const erase = el("button", { type: "submit", word: "forget-me" });
  const form = el("form", { class: "card", onsubmit: send }, el("p", { word: "forget-detail" }), field("code", code), wrong, erase);
  place.append(form);

  async function send(event) {
    event.preventDefault();
    erase.disabled = true;
    try {
      const done = proof_of(await request("forget", { method: "POST", json: { code: code.value } }));
      form.replaceWith(done);
      done.focus();
    } catch (error) {
      complain(wrong, error);
    } finally {
      erase.disabled = false;
    }
  }
}

/* Ask before something is erased; resolve to whether it is to be. */
export function sure(id, values) {
  return new Promise((done) => {
    const text = el("p", { id: "sure" });
    say(text, id, values);
    const box = el("dialog", { "aria-labelledby": "sure", onclose: () => { box.remove(); done(box.returnValue === "yes"); } },
      text, el("div", { class: "row" }, button("no", () => box.close("no")), button("yes", () => box.close("yes"), "danger")));
    document.body.append(box);
    box.showModal();
  });
}

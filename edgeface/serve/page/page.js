"use strict";
// Lists the operations of the service's OpenAPI document, and tries them. The key is in `key`, and nowhere else.

const base = location.pathname.replace(/\/docs$/, "");
let key = "", api = {};

/** Make an element; text is never read as HTML. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

/** Return a paragraph in which `words` are code. */
function told(text) {
  return el("p", {}, ...(text ?? "").split("`").map((part, number) => (number % 2 ? el("code", {}, part) : part)));
}

function find(value) {
  return value?.$ref ? find(value.$ref.slice(2).split("/").reduce((part, step) => part[step], api)) : value ?? {};
}

/** Name the type of a schema in a few words. */
function typeOf(given) {
  const schema = find(given), any = schema.anyOf ?? schema.oneOf;
  if (any) return any.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(", ");
  if (schema.format === "binary") return "file";
  if (schema.contentEncoding === "base64") return "base64";
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (given.$ref) return given.$ref.split("/").pop();
  return [schema.type ?? "any"].flat().join(" or ") + (schema.format ? ` (${schema.format})` : "");
}

function rangeOf(given) {
  const schema = find(given), inner = schema.anyOf?.map(find).find((each) => each.type !== "null") ?? schema;
  const named = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", maxLength: "length ≤" };
  const found = Object.entries(named).filter(([name]) => name in inner && Number.isSafeInteger(Math.trunc(inner[name]))).map(([name, sign]) => `${sign} ${inner[name]}`);
  return found.concat(schema.default == null ? [] : [`default ${schema.default}`]).join(", ");
}

function table(caption, rows) {
  const body = rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, ...name), el("td", {}, ...cells)));
  return rows.length ? el("table", {}, el("caption", {}, caption), el("tbody", {}, ...body)) : "";
}

function rowsOf(schema) {
  return Object.entries(schema.properties ?? {}).map(([name, value]) => [
    [el("code", {}, name), schema.required?.includes(name) ? " *" : ""],
    el("p", {}, typeOf(value), rangeOf(value) && `, ${rangeOf(value)}`),
    told(value.description),
  ]);
}

function bodyTable(body) {
  const content = find(body).content ?? {}, kinds = Object.keys(content);
  const [first] = kinds;
  return first ? [table("Body", rowsOf(find(content[first].schema))), el("p", { class: "note" }, `As ${kinds.join(", ")}.`)] : [];
}

function answerRow([status, given]) {
  const answer = find(given), content = Object.entries(answer.content ?? {});
  const cells = [told(answer.description)];
  for (const [kind, { schema }] of status < 300 ? content : []) {
    const rows = rowsOf(find(schema));
    cells.push(el("p", { class: "note" }, kind));
    if (rows.length) cells.push(el("details", {}, el("summary", {}, `Fields of ${typeOf(schema)}`), table("Fields", rows)));
  }
  return [[el("code", { class: status < 300 ? "good" : "bad" }, status)], ...cells];
}

// Trying an operation

function field(label, name, { value = "", required = false, kind = "text", many = false } = {}) {
  const made = kind === "json" ? el("textarea", { rows: 4, spellcheck: "false" }) : el("input", { type: kind });
  if (kind !== "file") made.value = value;
  made.name = name;
  made.required = required;
  if (many) made.multiple = true;
  return el("label", {}, el("span", {}, label + (required ? " *" : "")), made);
}

function fieldsOf(operation) {
  const parameters = (operation.parameters ?? []).map((each) =>
    field(each.name, `${each.in}:${each.name}`, { required: each.required, value: each.name === "gallery" && each.in === "path" ? "default" : "" }));
  const content = find(operation.requestBody).content ?? {}, form = content["multipart/form-data"];
  if (!form) return content["application/json"] ? [...parameters, field("Body (JSON)", "json", { kind: "json", value: "{}", required: true })] : parameters;
  const schema = find(form.schema);
  return [...parameters, ...Object.entries(schema.properties).map(([name, value]) => {
    const many = value.type === "array" && typeOf(value.items) === "file";
    const kind = many || typeOf(value) === "file" ? "file" : "text";
    return field(kind === "text" && name !== "name" ? `${name} (JSON)` : name, `form:${name}`, { kind, many, required: schema.required?.includes(name) });
  })];
}

/** Return address, options of fetch, and the words of curl that ask the same. */
function requestOf(path, method, form) {
  const query = new URLSearchParams(), data = new FormData(), words = [];
  let address = path, body;
  for (const input of form.elements) {
    const [place, name] = (input.name ?? "").split(":");
    if (!input.value) continue;
    if (place === "path") address = address.replace(`{${name}}`, encodeURIComponent(input.value));
    if (place === "query") query.append(name, input.value);
    if (place === "json") {
      body = input.value;
      words.push("-H", "content-type: application/json", "--data", body);
    }
    if (place !== "form") continue;
    for (const file of input.files ?? [null]) {
      data.append(name, file ?? input.value);
      words.push(file ? "-F" : "--form-string", file ? `${name}=@${file.name}` : `${name}=${input.value}`);
    }
  }
  const url = base + address + (query.size ? `?${query}` : "");
  const headers = { "x-api-key": key, ...(body === undefined ? {} : { "content-type": "application/json" }) };
  const quoted = words.map((word) => (/^-{1,2}[\w-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`));
  const start = `curl ${method === "GET" ? "" : `-X ${method} `}-H "x-api-key: $KEY"`;
  return [url, { method, headers, body: body ?? ([...data].length ? data : undefined) }, [start, ...quoted, `'${location.origin}${url}'`].join(" ")];
}

async function show(output, url, options) {
  const began = performance.now(), answer = await fetch(url, options), took = Math.round(performance.now() - began);
  const kind = answer.headers.get("content-type") ?? "";
  const status = el("p", { class: answer.ok ? "good" : "bad" }, `${answer.status}, ${kind || "no body"}, ${took} ms`);
  if (kind.startsWith("image/")) {
    const image = el("img", { alt: "The image that was answered" });
    image.src = URL.createObjectURL(await answer.blob());
    image.onload = () => URL.revokeObjectURL(image.src);
    return output.replaceChildren(status, image);
  }
  const text = await answer.text();
  const shown = /[/+]json$/.test(kind) && text ? JSON.stringify(JSON.parse(text), null, 2) : text;
  output.replaceChildren(status, el("pre", { tabindex: "0", "aria-label": "Answer" }, shown));
}

function tryForm(path, method, operation) {
  const line = el("pre", { tabindex: "0", "aria-label": "The same with curl" }), output = el("div", { role: "status" });
  const button = el("button", {}, "Send");
  const form = el("form", { class: "try", "aria-label": `Try ${operation.operationId}` }, el("h3", {}, "Try it"), ...fieldsOf(operation), button, line, output);
  const renew = () => { line.textContent = requestOf(path, method, form)[2]; };
  form.addEventListener("input", renew);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (method === "DELETE" && !confirm("This erases for good. Send it?")) return;
    button.disabled = true;
    try {
      await show(output, ...requestOf(path, method, form));
    } catch (error) {
      output.replaceChildren(el("p", { class: "bad" }, `No answer: ${error.message}`));
    } finally {
      button.disabled = false;
    }
  });
  renew();
  return form;
}

// The list

function describe(path, method, operation) {
  const made = el("details", { id: operation.operationId },
    el("summary", {}, el("code", {}, `${method} ${path}`), " ", el("span", {}, operation.description?.split(/[.:;]\s/)[0] ?? "")));
  made.addEventListener("toggle", () => {
    if (made.children.length > 1) return;  // filled when it is opened first
    const parameters = (operation.parameters ?? []).map((each) => [
      [el("code", {}, each.name), each.required ? " *" : ""],
      el("p", {}, `${each.in}, ${typeOf(each.schema)}`, rangeOf(each.schema) && `, ${rangeOf(each.schema)}`),
      told(each.description ?? each.schema.description),
    ]);
    made.append(...(operation.description ?? "").split(/\n\n/).map(told), table("Parameters", parameters),
      ...bodyTable(operation.requestBody), table("Answers", Object.entries(operation.responses).map(answerRow)), tryForm(path, method, operation));
  });
  return made;
}

function list() {
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(describe(path, method.toUpperCase(), operation));
    }
  const links = [...groups.keys()].map((tag) => el("li", {}, el("a", { href: `#tag-${tag}` }, tag)));
  document.getElementById("tags").replaceChildren(el("ul", {}, ...links));
  document.getElementById("operations").replaceChildren(...[...groups].map(([tag, operations]) =>
    el("section", { "aria-labelledby": `tag-${tag}` }, el("h2", { id: `tag-${tag}`, tabindex: "-1" }, tag), ...operations)));
  document.getElementById("version").textContent = `${api.info.title} API ${api.info.version}`.replace("edgeface ", "");
}

document.getElementById("open").addEventListener("submit", async (event) => {
  event.preventDefault();
  const status = document.getElementById("status");
  key = document.getElementById("key").value.trim();
  try {
    const answer = await fetch(`${base}/api/edgeface/v1/openapi.json`, { headers: { "x-api-key": key } });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.detail);
    api = found;
    list();
    status.className = "good";
    status.textContent = `${document.querySelectorAll("main details").length} operations; open one to see it and to try it.`;
  } catch (error) {
    status.className = "bad";
    status.textContent = `Not shown: ${error.message}`;
  }
});

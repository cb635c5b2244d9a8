// Controls of a form, made of what the server says of its fields. All have `value()` (undefined if nothing is given),
// `set(value)` and a place for what is wrong.
import { dataUri, el, show } from "./dom.js";

const INVITE = "Drop a file, or choose one";
let count = 0;

const plain = (schema) => schema.anyOf?.find((one) => one.type !== "null") ?? schema;

/** The name of a field in words. */
export function words(name) {
  const text = name.replaceAll("_", " ").replace(/^(crf|stg|cfg|apg|nag)\b/, (short) => short.toUpperCase());
  return text[0].toUpperCase() + text.slice(1);
}

/** A label, a control, a hint and a place for errors. */
function framed(name, label, hint, control, head = null) {
  const id = (control.id = `f${++count}-${name}`);
  const error = show(el("p", { className: "error", id: `${id}-error` }), false);
  const about = el("p", { className: "hint", id: `${id}-hint` }, hint ?? "");
  control.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const title = el("label", { for: id }, label);
  // A box stands before its label, anything else below it.
  head?.append(title);
  const element = el("div", { className: "field", data: { field: name } }, ...(head ? [head] : [title, control]));
  element.append(...(hint ? [about] : []), error);
  return {
    name,
    element,
    control,
    refuse(message) {
      error.textContent = message ?? "";
      show(error, Boolean(message));
      control.setAttribute("aria-invalid", String(Boolean(message)));
    },
    focus: () => control.focus(),
  };
}

/** A field that holds numbers, words, texts or a choice. */
export function plainField(name, schema, { label, hint, value, placeholder, rows, min, max, step } = {}) {
  const kind = plain(schema);
  const title = label ?? words(name);
  const about = hint ?? schema.description?.replace(/`(\w+)`/g, (_, other) => `“${words(other)}”`);
  if (kind.type === "boolean") {
    const box = el("input", { type: "checkbox", checked: value ?? false });
    const head = el("div", { className: "check" }, box);
    const field = framed(name, title, about, box, head);
    return { ...field, value: () => box.checked || undefined, set: (to) => (box.checked = Boolean(to)) };
  }
  if (kind.enum) {
    const none = el("option", { value: "" }, "default");
    const select = el("select", {}, none, ...kind.enum.map((word) => el("option", { value: word }, word)));
    return { ...framed(name, title, about, select), value: () => select.value || undefined, set: (to) => (select.value = to) };
  }
  const numbers = kind.type === "array";
  const number = kind.type === "number" || kind.type === "integer";
  const input = rows
    ? el("textarea", { rows, value: value ?? "" })
    : el("input", { type: number ? "number" : "text", value: value ?? "", autocomplete: "off" });
  if (number) Object.assign(input, { step: step ?? (kind.type === "integer" ? 1 : "any"), min: min ?? "", max: max ?? "" });
  input.placeholder = placeholder ?? "";
  return {
    ...framed(name, title, about, input),
    value() {
      const text = input.value.trim();
      if (!text) return undefined;
      if (numbers) return text.split(/[\s,]+/).map(Number);
      return number ? Number(text) : text;
    },
    set: (to) => (input.value = Array.isArray(to) ? to.join(" ") : to ?? ""),
  };
}

/** A file that is dropped or picked. */
export function fileField(name, { label, hint, accept, most, given }) {
  const input = el("input", { type: "file", accept });
  const shown = el("div", { className: "given" });
  const remove = el("button", { type: "button", className: "small" }, "Remove");
  const text = el("span", {}, INVITE);
  const field = framed(name, label, hint, input);
  // The input lies over all of the text, so that a press anywhere chooses a file, and the keyboard finds it.
  const pick = el("div", { className: "pick" }, text);
  const zone = el("div", { className: "drop" }, shown, pick, show(remove, false));
  input.replaceWith(zone);
  pick.append(input);
  let file = null;
  let url = null;
  const take = (next) => {
    if (url) URL.revokeObjectURL(url);
    url = null;
    field.refuse(null);
    if (next && next.size > most * 2 ** 20) {
      field.refuse(`${next.name} is larger than the ${most} MiB that this server takes`);
      next = null;
    }
    file = next;
    shown.replaceChildren();
    show(remove, file);
    text.textContent = file ? `${file.name}, ${Math.max(1, Math.round(file.size / 1000))} kB` : INVITE;
    given?.(file);
    if (!file) {
      input.value = "";
      return;
    }
    const tag = { image: "img", video: "video", audio: "audio" }[file.type.split("/")[0]];
    if (!tag) return;
    url = URL.createObjectURL(file);
    const seen = tag === "img" ? { alt: "what was given" } : { controls: true, preload: "metadata", "aria-label": "what was given" };
    shown.append(el(tag, { src: url, ...seen }));
  };
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  remove.addEventListener("click", () => {
    take(null);
    input.focus();
  });
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  return { ...field, value: () => (file ? dataUri(file) : undefined), holds: () => file !== null, set: take };
}

/** Strengths of LoRAs by name. */
export function adaptersField(names) {
  const rows = names.map((name) => {
    const box = el("input", { type: "checkbox" });
    const strength = el("input", { type: "number", step: 0.05, value: 1, disabled: true, "aria-label": `strength of ${name}` });
    box.addEventListener("change", () => (strength.disabled = !box.checked));
    return { name, box, strength, element: el("div", { className: "row" }, el("label", { className: "check" }, box, name), strength) };
  });
  const error = show(el("p", { className: "error" }), false);
  const element = el("fieldset", { className: "field", data: { field: "adapters" } }, el("legend", {}, "LoRA adapters and their strengths"));
  element.append(...rows.map((row) => row.element), error);
  return {
    name: "adapters",
    element,
    value() {
      const chosen = rows.filter((row) => row.box.checked).map((row) => [row.name, Number(row.strength.value)]);
      return chosen.length ? Object.fromEntries(chosen) : undefined;
    },
    refuse(message) {
      error.textContent = message ?? "";
      show(error, Boolean(message));
    },
    focus: () => rows[0].box.focus(),
  };
}

/** The fields of a memory. What can't be stored is said by its field, before anything is sent. */

import { el } from "./dom.js";
import { day } from "./memory-times.js";

const LONGEST = { description: 500, contents: 20_000, keyword: 100 };
const MOST_KEYWORDS = 20;
const NEAR = 0.8; // of the longest: from there on the characters are counted

let fields = 0; // so that each has an id

/** A control with its label, and below what is wrong with it. */
class Field {
  element;
  #control;
  #check;
  #hint;
  #note = el("small", { id: `memory-note-${(fields += 1)}` });

  /**
   * @param {string} label
   * @param {HTMLElement} control
   * @param {() => string} check what is wrong with it, or ""
   * @param {() => string} [hint] what is said while it is written
   */
  constructor(label, control, check, hint = () => "") {
    this.#control = control;
    this.#check = check;
    this.#hint = hint;
    control.setAttribute("aria-describedby", this.#note.id);
    control.addEventListener("input", () => this.#say(false, this.#hint()));
    this.element = el("div", {}, el("label", {}, label, control), this.#note);
  }

  /** @returns {boolean} whether it can be stored; says so if not, and takes the focus */
  check() {
    const wrong = this.#check();
    this.#say(Boolean(wrong), wrong || this.#hint());
    if (wrong) this.#control.focus();
    return !wrong;
  }

  #say(wrong, text) {
    this.#control.setAttribute("aria-invalid", String(wrong));
    this.#note.textContent = text;
  }
}

/**
 * @param {object} memory as the API gives it; a new one has `description`, `contents` and `keywords`
 * @param {object} handlers
 * @param {(values: object) => Promise<void>} handlers.onSave says by an error why it can't be
 * @param {() => void} handlers.onCancel
 * @returns {HTMLFormElement}
 */
export function memoryForm(memory, { onSave, onCancel }) {
  const description = el("textarea", { rows: 2, value: memory.description });
  const contents = el("textarea", { rows: 4, value: memory.contents });
  const keywords = el("input", { value: memory.keywords.join(", ") });
  const until = el("input", { type: "date", max: "9999-12-30", value: memory.valid_to ? date(memory.valid_to) : "" });
  const { value: endedOn } = until;
  const line = () => description.value.trim().replace(/\s+/g, " ");
  const names = () => keywords.value.split(",").map((word) => word.trim()).filter(Boolean);
  const all = [
    new Field(
      "What is remembered, in a line",
      description,
      () => (line() ? tooLong(line(), LONGEST.description) : "Say in a line what is to be remembered."),
      () => count(line(), LONGEST.description),
    ),
    new Field(
      "More of it",
      contents,
      () => tooLong(contents.value, LONGEST.contents),
      () => count(contents.value, LONGEST.contents),
    ),
    new Field("Other names for it, with commas between", keywords, () => wrongNames(names())),
    new Field("Holds until, that day included (optional)", until, () => {
      if (until.validity.badInput || until.validity.rangeOverflow) return "This is no date that can be kept.";
      const early = until.value !== endedOn && until.value && endOf(until.value) < (memory.valid_from ?? 0);
      return early ? `It holds from ${day(memory.valid_from)} on: take a later day.` : "";
    }),
  ];
  const values = () => ({
    description: line(),
    contents: contents.value,
    keywords: names(),
    ...(until.value !== endedOn && ending(until.value, memory)),
  });
  const error = el("p", { className: "error", role: "alert" });
  const save = el("button", { type: "submit", className: "yes" }, "Save");
  const cancel = el("button", { type: "button" }, "Cancel");
  const form = el(
    "form",
    { autocomplete: "off", noValidate: true },
    ...all.map((field) => field.element),
    error,
    el("div", { className: "buttons" }, cancel, save),
  );
  cancel.addEventListener("click", onCancel);
  form.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && event.target === description && !event.isComposing;
    if (!sends && event.key !== "Escape") return;
    event.preventDefault(); // Escape would close the panel
    if (sends) form.requestSubmit();
    else onCancel();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    error.textContent = "";
    // From the last to the first, which then has the focus.
    if (all.toReversed().filter((field) => !field.check()).length) return;
    save.disabled = true;
    try {
      await onSave(values());
    } catch (failure) {
      error.textContent = failure.message;
    }
    save.disabled = false;
  });
  return form;
}

function tooLong(text, most) {
  const length = [...text].length;
  return length > most ? `${length} of ${most} characters: ${length - most} too many.` : "";
}

function count(text, most) {
  const length = [...text].length;
  return tooLong(text, most) || (length > NEAR * most ? `${length} of ${most} characters.` : "");
}

function wrongNames(names) {
  if (names.length > MOST_KEYWORDS) return `${names.length} names: ${MOST_KEYWORDS} at most.`;
  return names.map((name) => tooLong(name, LONGEST.keyword)).find(Boolean) ?? "";
}

/** What has no end is replaced by nothing. */
function ending(value, memory) {
  if (value) return { valid_to: endOf(value) };
  return { valid_to: null, ...(memory.superseded_by && { superseded_by: null }) };
}

function endOf(value) {
  return Math.floor(new Date(`${value}T23:59:59`) / 1000);
}

/** The day of a time, here, as a date field has it. */
function date(seconds) {
  const time = new Date(seconds * 1000);
  return new Date(time - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 10);
}

/** One memory in the panel: read, pinned, edited in place, deleted. */

import { problem } from "./answer.js";
import { call } from "./api.js";
import { confirmDelete } from "./confirm.js";
import { el } from "./dom.js";
import { memoryForm } from "./memory-form.js";
import { span, times } from "./memory-times.js";
import { opensElsewhere } from "./sidebar.js";

const LONGEST_SHOWN = 300;

/** A memory as an entry of a list. */
export class MemoryCard {
  element = el("li", { tabIndex: -1 });
  #memory;
  #successor; // the path of what replaces it; null when that is gone
  #looking = null;
  #handlers;

  /**
   * @param {object} memory as the list has it
   * @param {object} handlers
   * @param {(sessionId: string) => void} handlers.onOpen
   * @param {(memoryId: string) => void} handlers.onShow
   * @param {() => void} handlers.onChanged
   * @param {() => void} handlers.onDeleted
   * @param {(text: string) => void} handlers.say tells screen readers
   */
  constructor(memory, handlers) {
    this.#memory = memory;
    this.#handlers = handlers;
    this.#draw();
  }

  /** @returns {string} */
  get id() {
    return this.#memory.id;
  }

  /**
   * Whether it shows a memory as the server has it now; while it is edited it is left alone.
   * @param {object} memory
   * @returns {boolean}
   */
  shows({ id, version, updated_at: updated }) {
    const { id: shown, version: seen, updated_at: then } = this.#memory;
    return id === shown && (this.#editing || (version === seen && updated === then));
  }

  /** Asks once where it comes from, what it was before and what replaces it; does without when that fails. */
  look() {
    const { source, version, superseded_by: successor } = this.#memory;
    if (source || version > 1 || successor) this.#looking ??= this.#look(successor);
    return this.#looking;
  }

  async #look(successor) {
    const [whole, other] = await Promise.all([
      call(address(this.id)).catch(() => null),
      successor && call(address(successor)).catch(({ status }) => (status === 404 ? { path: null } : null)),
    ]);
    if (!whole || (this.#editing && whole.version !== this.#memory.version)) return;
    this.#memory = whole;
    this.#successor = other?.path;
    if (!this.#editing) this.#draw(this.element.querySelector(":focus")?.dataset.do);
  }

  /**
   * Whether a text stands anywhere in it, or in what it was before.
   * @param {string} text in lower case
   * @returns {Promise<boolean>}
   */
  async has(text) {
    if (this.#memory.version > 1) await this.look();
    const { path, keywords, history = [] } = this.#memory;
    const said = [this.#memory, ...history].flatMap((each) => [each.description, each.contents]);
    return [path, ...keywords, ...said].some((part) => part.toLowerCase().includes(text));
  }

  get #editing() {
    return this.element.firstChild instanceof HTMLFormElement;
  }

  /** @param {string} [focus] the button that has the focus then */
  #draw(focus) {
    const memory = this.#memory;
    const over = memory.valid_to !== null && memory.valid_to * 1000 <= Date.now();
    const name = el("h3", {}, memory.description);
    const marks = [memory.pinned && "Pinned", holding(memory, over)].filter(Boolean);
    name.append(...marks.map((mark) => el("span", { className: "mark" }, mark)));
    this.element.classList.toggle("over", over);
    this.element.replaceChildren(
      name,
      ...folded(memory.contents),
      el("p", { className: "facts" }, el("code", {}, memory.path), times(memory)),
      ...this.#replaced(over),
      ...this.#from(memory.source),
      ...this.#before(memory.history ?? []),
      this.#buttons(),
    );
    if (focus) this.#focus(focus);
  }

  #focus(name) {
    this.element.querySelector(`[data-do="${name}"]`)?.focus();
  }

  #replaced(over) {
    const { superseded_by: id } = this.#memory;
    if (!id || this.#successor === undefined) return [];
    const path = this.#successor && el("code", {}, this.#successor);
    const link = path ? this.#link("memory", id, path, "Show this memory") : "a memory that is gone";
    return [el("p", { className: "from" }, over ? "Replaced by " : "Then replaced by ", link)];
  }

  #from(source) {
    if (!source || source.text === undefined) return [];
    if (source.text === null) return [el("p", { className: "from" }, "From a message that is gone")];
    return [el("p", { className: "from" }, "From: ", this.#chat(source, `“${brief(source.text)}”`))];
  }

  /** What it was, with dates. */
  #before(history) {
    if (!history.length) return [];
    const entries = history.map((version) => {
      const dates = span(version.valid_from, version.valid_to);
      const parts = [el("small", {}, dates), el("div", {}, version.description), ...folded(version.contents)];
      if (version.source) parts.push(el("small", {}, this.#chat(version.source, "From this chat")));
      return el("li", {}, ...parts);
    });
    const many = history.length === 1 ? "1 version" : `${history.length} versions`;
    return [el("details", {}, el("summary", {}, `What it was before: ${many}`), el("ol", {}, ...entries))];
  }

  #chat({ session_id: id }, words) {
    return this.#link("session", id, words, "Open this chat");
  }

  #link(kind, id, words, title) {
    const link = el("a", { href: `?${kind}=${encodeURIComponent(id)}`, title }, words);
    link.addEventListener("click", (event) => {
      if (opensElsewhere(event)) return;
      event.preventDefault();
      if (kind === "session") this.#handlers.onOpen(id);
      else this.#handlers.onShow(id);
    });
    return link;
  }

  #buttons() {
    const { pinned, description } = this.#memory;
    const make = (name, label, onClick) => {
      const words = `${label}: ${description}`;
      const button = el("button", { type: "button", "aria-label": words, "data-do": name }, label);
      button.addEventListener("click", onClick);
      return button;
    };
    return el(
      "div",
      { className: "acts" },
      make("pin", pinned ? "Unpin" : "Pin", () => this.#pin()),
      make("edit", "Edit", () => this.#edit()),
      make("delete", "Delete", () => this.#delete()),
    );
  }

  async #pin() {
    try {
      await this.#change({ pinned: !this.#memory.pinned });
      this.#draw("pin");
      this.#handlers.say(this.#memory.pinned ? "Pinned." : "Not pinned any more.");
    } catch (error) {
      this.#failed(error);
    }
  }

  #edit() {
    const form = memoryForm(this.#memory, {
      onCancel: () => this.#draw("edit"),
      onSave: async (values) => {
        await this.#change({ ...values, version: this.#memory.version });
        this.#draw("edit");
        this.#handlers.say("Saved.");
        this.#looking = null;
        this.look();
      },
    });
    this.element.replaceChildren(form);
    form.querySelector("textarea").focus();
  }

  async #change(values) {
    const headers = { "Content-Type": "application/json" };
    const { history } = this.#memory;
    const options = { method: "PATCH", headers, body: JSON.stringify(values) };
    const changed = await call(address(this.id), options);
    const source = changed.source && { ...this.#memory.source, ...changed.source };
    this.#memory = { ...changed, source, history };
    this.#handlers.onChanged();
  }

  #delete() {
    const said = this.#memory.source ? ", and the message it comes from is not recalled any more" : "";
    confirmDelete({
      title: "Delete this memory?",
      text:
        `“${this.#memory.description}” and all that it was before will be gone for good. ` +
        `The chats in which it was said stay${said}.`,
      action: () => call(address(this.id), { method: "DELETE" }),
      done: this.#handlers.onDeleted,
      back: () => this.#focus("delete"),
    });
  }

  #failed(error) {
    this.element.querySelector(".problem")?.remove();
    this.element.append(problem(error.message));
  }
}

/**
 * The first words of a message.
 * @param {string} text
 * @returns {string}
 */
export function brief(text) {
  const characters = [...text.trim()];
  if (characters.length <= LONGEST_SHOWN) return text.trim();
  return `${characters.slice(0, LONGEST_SHOWN).join("")}…`;
}

/** Contents, of which what is long is shown when it is asked for. */
function folded(text) {
  if (!text) return [];
  const box = el("div", { className: "contents" }, text);
  if (brief(text) === text.trim()) return [box];
  const button = el("button", { type: "button", className: "more" });
  const show = (all) => {
    box.textContent = all ? text : brief(text);
    button.textContent = all ? "Show less" : "Show all";
    button.setAttribute("aria-expanded", String(all));
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "false"));
  show(false);
  return [box, button];
}

function holding({ valid_from: from, superseded_by: successor }, over) {
  if (over) return successor ? "Replaced" : "Over";
  return from * 1000 > Date.now() && "Not yet";
}

function address(id) {
  return `memories/${encodeURIComponent(id)}`;
}

/**
 * What is remembered, in a panel: found, added, changed, deleted, exported.
 * The page loads this module only when somebody opens it.
 */

import { problem } from "./answer.js";
import { ask, call } from "./api.js";
import { el, icon, style } from "./dom.js";
import { MemoryCard } from "./memory-card.js";
import { memoryForm } from "./memory-form.js";

const PAUSE = 200; // while somebody types
const PAGE = 30;
const FINE_POINTER = matchMedia("(pointer: fine)");
const WHAT_IT_IS = [
  "A memory is a fact or a preference of yours that outlasts a chat: that you eat no meat, say, or how you like your code.",
  "The agent notes one when you tell it something that is worth it, and you can add your own. All of them are shown here, with where they come from, for you to change and to delete.",
];

await Promise.all(["dialog.css", "memory.css"].map(style));

/** The memories of whoever reads this, last changed first, or those that fit what is searched. */
export class MemoryPanel {
  #field = el("input", {
    type: "search",
    placeholder: "Search memories",
    autocomplete: "off",
    maxLength: 400,
    "aria-label": "Search memories",
  });
  #add = button("Add", () => this.#write());
  #new = el("ul", {}); // what is just being written
  #list = el("ul", {});
  #end = el("div", { className: "end" });
  #problem = el("div", {});
  #said = el("div", { className: "unseen", role: "status" });
  #dialog;
  #seen;
  #listed = []; // cards of the list as far as it is loaded
  #next = null; // the id after which it goes on
  #cards = new WeakMap(); // elements to cards
  #timer = 0;
  #asked = 0; // counts what was asked, as answers may overtake each other
  #onOpen;

  /** @param {(sessionId: string) => void} onOpen */
  constructor(onOpen) {
    this.#onOpen = onOpen;
    const close = button(icon("cross"), () => this.#dialog.close(), { "aria-label": "Close", className: "plain" });
    const title = el("h2", { id: "memory-title" }, "Memory");
    const head = el("div", { className: "head" }, title, this.#add, button("Export", () => this.#export()), close);
    const body = el("div", { className: "body" }, this.#new, this.#list, this.#end);
    this.#dialog = el(
      "dialog",
      { id: "memories", "aria-labelledby": "memory-title" },
      head,
      this.#field,
      this.#problem,
      body,
      this.#said,
    );
    this.#seen = new IntersectionObserver((entries) => this.#appeared(entries), { root: body });
    this.#field.addEventListener("input", () => this.#typed());
    this.#field.addEventListener("keydown", (event) => this.#pressed(event));
    document.body.append(this.#dialog);
  }

  /**
   * Shows it, with what there is now.
   * @param {string} [id] the memory that is looked for
   */
  async open(id) {
    this.#dialog.showModal();
    if (FINE_POINTER.matches) this.#field.focus(); // else it would open an on-screen keyboard
    this.#field.value = "";
    this.#problem.replaceChildren();
    this.#listed = [];
    this.#next = null;
    await this.#load();
    if (id && this.#listed.length) await this.#goTo(id);
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#asked += 1;
    if (this.#words) this.#timer = setTimeout(() => this.#search([]), PAUSE);
    else this.#showList();
  }

  get #words() {
    return this.#field.value.trim();
  }

  /** Escape gives all of them back before it closes the panel. */
  #pressed(event) {
    if (event.key !== "Escape" || !this.#field.value) return;
    event.preventDefault();
    event.stopPropagation();
    this.#field.value = "";
    this.#typed();
  }

  /** Loads the list, or the next page of it. */
  async #load() {
    const before = this.#listed.length;
    await this.#ask({ ...(this.#next && { after: this.#next }) }, () => this.#load(), ({ data, has_more: more }) => {
      this.#listed.push(...data.filter((memory) => !this.#known(memory.id)).map((memory) => this.#card(memory)));
      this.#next = more ? data.at(-1).id : null;
      this.#showList();
      if (before) this.#focusOn(before);
    });
  }

  #showList() {
    this.#show(this.#listed, this.#next && (() => this.#load()));
    this.#said.textContent = "";
  }

  /** What the server finds by words, then what of the loaded list has the text anywhere. */
  async #search(before) {
    const q = this.#words;
    const after = before.at(-1)?.id;
    const fitting = this.#fitting(q.toLowerCase());
    const more = () => this.#search(before);
    await this.#ask({ q, ...(after && { after }) }, more, async (page, isCurrent) => {
      const fits = await fitting;
      if (isCurrent()) this.#showFound(before, page, fits);
    });
  }

  #showFound(before, { data, has_more: more, complete }, fits) {
    const found = before.concat(data.map((memory) => this.#card(memory)));
    const others = fits.filter(({ id }) => found.every((card) => card.id !== id));
    this.#show([...found, ...others], more && (() => this.#search(found)));
    const notes = [];
    if (!more && !complete) notes.push("There may be more: add a rarer word.");
    if (this.#next) notes.push(`Parts of words were looked for in the newest ${this.#listed.length} only.`);
    this.#end.append(...notes.map((note) => el("p", {}, note)));
    if (before.length) this.#focusOn(before.length);
    const least = more || !complete || this.#next ? "At least " : "";
    this.#said.textContent = `${least}${found.length + others.length} found.`;
  }

  async #fitting(text) {
    const listed = [...this.#listed];
    const fits = await Promise.all(listed.map((card) => card.has(text)));
    return listed.filter((_, place) => fits[place]);
  }

  async #ask(options, again, take) {
    const asked = (this.#asked += 1);
    const isCurrent = () => asked === this.#asked;
    try {
      const page = await call(`memories?${new URLSearchParams({ limit: PAGE, ...options })}`);
      if (isCurrent()) await take(page, isCurrent);
    } catch (error) {
      if (isCurrent()) this.#end.replaceChildren(problem(error.message, again));
    }
  }

  #show(cards, more) {
    this.#list.replaceChildren(...cards.map((card) => card.element));
    this.#end.replaceChildren();
    this.#ifEmpty();
    if (more) this.#end.append(button("Show more", more));
  }

  #focusOn(place) {
    this.#list.children[place]?.querySelector("button").focus();
  }

  #ifEmpty() {
    if (this.#list.children.length) return;
    const q = this.#words;
    const nothing = q ? [el("p", {}, "Nothing found.")] : WHAT_IT_IS.map((text) => el("p", {}, text));
    if (!q) nothing.unshift(icon("memory"), el("h3", {}, "Nothing is remembered yet"));
    this.#end.replaceChildren(el("div", { className: q ? "" : "empty" }, ...nothing));
  }

  #known(id) {
    return this.#listed.find((card) => card.id === id);
  }

  /** The card of a memory: that of the list, as long as it shows what there is now. */
  #card(memory) {
    const known = this.#known(memory.id);
    if (known?.shows(memory)) return known;
    const card = new MemoryCard(memory, {
      onOpen: (id) => this.#leaveFor(id),
      onShow: (id) => this.#goTo(id),
      onChanged: () => this.#listFirst(card),
      onDeleted: () => this.#deleted(card),
      say: (text) => (this.#said.textContent = text),
    });
    if (known) this.#listed[this.#listed.indexOf(known)] = card;
    this.#cards.set(card.element, card);
    this.#seen.observe(card.element);
    return card;
  }

  /** The last changed comes first when the list is drawn again; until then it stays where it is. */
  #listFirst(card) {
    this.#listed = [card, ...this.#listed.filter(({ id }) => id !== card.id)];
  }

  /** Where a memory comes from, and what it was, is asked for when it comes into sight. */
  #appeared(entries) {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      this.#seen.unobserve(target);
      this.#cards.get(target).look();
    }
  }

  #leaveFor(sessionId) {
    this.#dialog.close();
    this.#onOpen(sessionId);
  }

  /** Brings a memory into sight; one that is not in the loaded list comes first. */
  async #goTo(id) {
    this.#problem.replaceChildren();
    if (!this.#known(id)) {
      try {
        this.#listFirst(this.#card(await call(`memories/${encodeURIComponent(id)}`)));
      } catch (error) {
        const words = error.status === 404 ? "This memory is gone." : error.message;
        this.#problem.replaceChildren(problem(words));
        return;
      }
    }
    this.#field.value = "";
    this.#typed();
    const { element } = this.#known(id);
    element.scrollIntoView({ block: "center" });
    element.focus();
  }

  #deleted(card) {
    const { element } = card;
    const next = element.nextElementSibling ?? element.previousElementSibling;
    element.remove();
    const place = this.#listed.indexOf(card);
    if (this.#next === card.id) this.#next = this.#listed[place - 1]?.id ?? null;
    if (place >= 0) this.#listed.splice(place, 1);
    this.#ifEmpty();
    this.#said.textContent = "Memory deleted.";
    (next?.querySelector("button") ?? this.#field).focus();
  }

  /** Takes a memory that the reader writes. */
  #write() {
    const leave = () => {
      this.#new.replaceChildren();
      this.#add.disabled = false;
      this.#add.focus();
    };
    const form = memoryForm(
      { description: "", contents: "", keywords: [] },
      {
        onCancel: leave,
        onSave: async (values) => {
          const headers = { "Content-Type": "application/json" };
          const made = await call("memories", { method: "POST", headers, body: JSON.stringify(values) });
          const card = this.#card(made);
          this.#end.querySelector(".empty")?.remove();
          this.#listFirst(card);
          this.#list.prepend(card.element);
          leave();
          this.#said.textContent = "Memory added.";
        },
      },
    );
    this.#new.append(el("li", {}, form));
    this.#add.disabled = true;
    form.querySelector("textarea").focus();
  }

  async #export() {
    this.#problem.replaceChildren();
    try {
      const response = await ask("memories/export");
      if (!response.ok) throw new Error(`The server answered ${response.status}.`);
      const href = URL.createObjectURL(await response.blob());
      el("a", { href, download: "memories.jsonl" }).click();
      setTimeout(() => URL.revokeObjectURL(href), 60_000);
    } catch (error) {
      this.#problem.append(problem(`Not exported. ${error.message}`, () => this.#export()));
    }
  }
}

function button(content, onClick, properties = {}) {
  const element = el("button", { type: "button", ...properties }, content);
  element.addEventListener("click", onClick);
  return element;
}

/** Past chats, found by what was said in them. Loaded when somebody is about to search. */

import { problem } from "./answer.js";
import { call } from "./api.js";
import { announce, byId, el, style } from "./dom.js";
import { opensElsewhere } from "./sidebar.js";

const PAUSE = 200; // while somebody types
const PAGE = 30;

/** What was found lies over the list of chats for as long as there is something in the field. */
export class Search {
  #field = byId("find");
  #list = byId("sessions");
  #found = el("nav", { id: "found", "aria-label": "Chats found", hidden: true });
  #timer = 0;
  #asked = 0; // counts what was asked, as answers may overtake each other
  #onOpen;

  /** @param {(id: string) => void} onOpen */
  constructor(onOpen) {
    this.#onOpen = onOpen;
    style("search.css");
    this.#list.after(this.#found);
    this.#field.addEventListener("input", () => this.#typed());
    this.#field.addEventListener("keydown", (event) => this.#pressed(event));
    this.#found.addEventListener("click", (event) => this.#clicked(event));
    this.#typed();
  }

  #typed() {
    clearTimeout(this.#timer);
    const words = this.#field.value.trim();
    this.#found.hidden = !words;
    this.#list.hidden = Boolean(words);
    this.#asked += 1;
    if (words) this.#timer = setTimeout(() => this.#ask(words, []), PAUSE);
  }

  /** Escape gives the list back before it closes anything else. */
  #pressed(event) {
    if (event.key !== "Escape" || !this.#field.value) return;
    event.preventDefault();
    event.stopPropagation();
    this.#field.value = "";
    this.#typed();
  }

  async #ask(words, before) {
    const asked = (this.#asked += 1);
    const after = before.at(-1)?.id;
    const options = new URLSearchParams({ q: words, limit: PAGE, ...(after && { after }) });
    try {
      const page = await call(`sessions?${options}`);
      if (asked === this.#asked) this.#show(words, before.concat(page.data), page);
    } catch (error) {
      if (asked !== this.#asked) return;
      this.#found.replaceChildren(problem(error.message, () => this.#ask(words, before)));
    }
  }

  #show(words, sessions, page) {
    const rows = sessions.map((session) => el("li", { "data-id": session.id }, link(session)));
    const parts = [el("ul", {}, ...rows)];
    if (!sessions.length) parts[0] = el("p", {}, "Nothing found.");
    if (page.has_more) {
      const more = el("button", { type: "button" }, "Show more");
      more.addEventListener("click", () => this.#ask(words, sessions));
      parts.push(more);
    } else if (!page.complete) {
      parts.push(el("p", {}, "There may be more: add a rarer word."));
    }
    const focused = this.#found.contains(document.activeElement) ? sessions.length - page.data.length : -1;
    this.#found.replaceChildren(...parts);
    this.#found.querySelectorAll("a")[focused]?.focus();
    const count = page.has_more || !page.complete ? `At least ${sessions.length}` : sessions.length;
    announce(`${count} found.`);
  }

  #clicked(event) {
    const id = event.target.closest("li")?.dataset.id;
    if (!id || !event.target.closest("a") || opensElsewhere(event)) return;
    event.preventDefault();
    this.#onOpen(id);
  }
}

function link({ id, title, match }) {
  const passage = el("small", {});
  let end = 0;
  for (const [from, to] of match.marks) {
    passage.append(match.text.slice(end, from), el("mark", {}, match.text.slice(from, to)));
    end = to;
  }
  passage.append(match.text.slice(end));
  return el("a", { href: `?session=${encodeURIComponent(id)}` }, title || "New chat", passage);
}

/** The conversation on the screen: turns, older ones on demand, and where it is scrolled to. */

import { Answer, plainText, problem } from "./answer.js";
import { byId, el, unseen } from "./dom.js";

const NEAR = 8;

/** @typedef {{items: object[], older: (() => Promise<Page>)|null}} Page items, oldest first */

/** The column of turns. */
export class Transcript {
  #column = byId("transcript");
  #top = el("div", { className: "top" });
  #scroll = new Scroll(byId("scroller"), this.#column, byId("jump"));
  #loadOlder = null;
  #observer = new IntersectionObserver((entries) => this.#reached(entries), {
    root: byId("scroller"),
    rootMargin: "600px 0px 0px",
  });
  #seen = new IntersectionObserver((entries) => this.#appeared(entries), { root: byId("scroller") });
  #answers = new WeakMap(); // by their elements
  #onSeen;
  #head = null; // the first turn's agent side, when its beginning is on an older page

  /** @param {(responseId: string, answer: Answer) => void} onSeen a stored answer came into sight */
  constructor(onSeen) {
    this.#onSeen = onSeen;
  }

  /** Takes everything off the screen. */
  clear() {
    this.#observer.disconnect();
    this.#seen.disconnect();
    this.#loadOlder = null;
    this.#head = null;
    this.#column.replaceChildren();
  }

  /** @param {...Node} nodes instead of a conversation */
  showInstead(...nodes) {
    this.clear();
    this.#column.append(...nodes);
  }

  /**
   * Shows the newest part of a conversation.
   * @param {Page} page
   */
  show({ items, older }) {
    this.clear();
    this.#column.append(this.#top);
    this.#insert(items);
    this.#scroll.toEnd();
    this.#await(older);
  }

  /** @param {string} text */
  addUser(text) {
    this.#column.append(userTurn({ content: text }));
    this.#scroll.toEnd();
  }

  /**
   * Takes a turn back that is going to be tried again.
   * @param {Answer} answer
   */
  removeTurn(answer) {
    const before = answer.element.previousElementSibling;
    if (before?.classList.contains("user")) before.remove();
    answer.element.remove();
  }

  /** @returns {Answer} waiting for its first words */
  beginAnswer() {
    return this.addAnswer().begin();
  }

  /** @returns {Answer} empty, at the end */
  addAnswer() {
    const answer = new Answer();
    this.#column.append(answer.element);
    this.#scroll.toEnd();
    return answer;
  }

  /**
   * Puts something back where a turn stopped for good.
   * @param {HTMLElement} element
   * @param {string} responseId of the run that stopped
   */
  attach(element, responseId) {
    const place = `[data-response="${CSS.escape(responseId)}"] .answer-body`;
    this.#column.querySelector(place)?.append(element);
  }

  /** Puts older items above; a turn that was cut by the page's end is drawn anew as a whole. */
  #insert(items) {
    const all = [...items, ...(this.#head?.items ?? [])];
    this.#head?.element.remove();
    const turns = grouped(all).map(drawn);
    this.#head = turns[0]?.items ? turns[0] : null;
    this.#top.after(...turns.map((turn) => turn.element));
    for (const { element, answer } of turns.filter((turn) => turn.element.dataset.response)) {
      this.#answers.set(element, answer);
      this.#seen.observe(element);
    }
  }

  #appeared(entries) {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      this.#seen.unobserve(target);
      this.#onSeen(target.dataset.response, this.#answers.get(target));
    }
  }

  #await(older) {
    this.#loadOlder = older;
    if (older) this.#observer.observe(this.#top);
  }

  #reached(entries) {
    if (entries.at(-1).isIntersecting && this.#loadOlder) this.#older();
  }

  async #older() {
    const load = this.#loadOlder;
    this.#observer.disconnect();
    this.#top.replaceChildren(el("p", { className: "note" }, "Loading earlier messages…"));
    try {
      const { items, older } = await load();
      if (load !== this.#loadOlder) return;
      this.#top.replaceChildren();
      this.#scroll.keepPlace(() => this.#insert(items));
      this.#await(older);
    } catch (error) {
      if (load !== this.#loadOlder) return;
      this.#top.replaceChildren(problem(error.message, () => this.#older()));
    }
  }
}

/** Items by turns: a user's message, or all that the agent did between two of them. */
function grouped(items) {
  const turns = [];
  for (const item of items) {
    if (item.role === "system" || item.role === "developer") continue;
    if (item.role === "user") turns.push({ user: item });
    else if (turns.at(-1)?.items) turns.at(-1).items.push(item);
    else turns.push({ items: [item] });
  }
  return turns;
}

function drawn(turn) {
  if (turn.user) return { element: userTurn(turn.user) };
  const answer = new Answer();
  for (const item of turn.items) answer.addItem(item);
  answer.element.dataset.response = turn.items.at(-1).response_id ?? "";
  const stopped = turn.items.some((item) => item.role === "assistant" && item.status === "incomplete");
  answer.finish(stopped ? "Stopped." : "");
  return { element: answer.element, items: turn.items, answer };
}

function userTurn(item) {
  const bubble = el("div", { className: "bubble" }, ...userParts(item.content));
  return el("article", { className: "user" }, unseen("You said", "h2"), bubble);
}

function userParts(content) {
  if (typeof content === "string") return [content];
  return content.map((part) => {
    if (part.type === "input_image" && part.image_url?.startsWith("data:image/")) {
      return el("img", { src: part.image_url, alt: "Attached image" });
    }
    return plainText([part]) || el("span", { className: "chip" }, part.filename ?? "Attachment");
  });
}

/** Stays at the end while something is written there, unless the reader went up. */
class Scroll {
  #scroller;
  #jump;
  #following = true;
  #lastTop = 0;

  constructor(scroller, column, jump) {
    this.#scroller = scroller;
    this.#jump = jump;
    scroller.addEventListener("scroll", () => this.#moved());
    jump.addEventListener("click", () => this.toEnd());
    const grown = new ResizeObserver(() => (this.#following ? this.toEnd() : this.#moved()));
    grown.observe(column);
    grown.observe(scroller);
  }

  toEnd() {
    this.#following = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#moved();
  }

  /** What is read now stays where it is while `change` adds something above it. */
  keepPlace(change) {
    const below = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    change();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - below;
  }

  #moved() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (atEnd) this.#following = true;
    else if (scrollTop < this.#lastTop) this.#following = false;
    this.#lastTop = scrollTop;
    this.#jump.hidden = atEnd || this.#following;
  }
}

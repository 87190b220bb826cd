/** What was remembered for an answer, folded under it. The page loads this module when there is something. */

import { plainText } from "./answer.js";
import { call } from "./api.js";
import { el, icon, style } from "./dom.js";
import { brief } from "./memory-card.js";
import { opensElsewhere } from "./sidebar.js";

const FEW = 5;

await style("memory.css");

/** A list that is asked for when it is opened. */
export class Recalled {
  element;
  #list = el("ul", {});
  #handlers;

  /**
   * @param {object[]} recalled each `{memory, version}`, or `{session_id, seq}`
   * @param {object} handlers
   * @param {(sessionId: string) => void} handlers.onOpen
   * @param {(memoryId: string) => void} handlers.onMemory
   */
  constructor(recalled, handlers) {
    this.#handlers = handlers;
    if (recalled.length > FEW) this.#list.tabIndex = 0; // it scrolls
    const summary = el("summary", {}, icon("memory"), `Remembered ${recalled.length}`, icon("chevron"));
    this.element = el("details", { className: "step recalled" }, summary, this.#list);
    this.element.addEventListener("toggle", () => this.#fill(recalled), { once: true });
  }

  async #fill(recalled) {
    this.#list.replaceChildren(el("li", {}, "Loading…"));
    const entries = recalled.map((each) => (each.memory ? this.#memory(each) : this.#message(each)));
    this.#list.replaceChildren(...(await Promise.all(entries.map(entry))));
  }

  async #message({ session_id: id, seq }) {
    const session = `sessions/${encodeURIComponent(id)}`;
    const { data } = await call(`${session}/items?after=${seq - 1}&limit=1`);
    if (data[0]?.seq !== seq) return gone();
    const words = brief(plainText(data[0].content));
    const who = data[0].role === "user" ? "You" : "The assistant";
    const open = () => this.#handlers.onOpen(id);
    return [link("session", id, words, open), el("small", {}, `${who} said in another chat`)];
  }

  /** What a memory said in that version, which may have changed since. */
  async #memory({ memory: id, version }) {
    const now = await call(`memories/${encodeURIComponent(id)}`);
    const then = now.history.find((old) => old.version === version) ?? now;
    const open = () => this.#handlers.onMemory(id);
    const changed = then.description === now.description ? [] : [el("small", {}, `Now: ${now.description}`)];
    return [link("memory", id, then.description, open), ...changed];
  }
}

function link(kind, id, words, open) {
  const element = el("a", { href: `?${kind}=${encodeURIComponent(id)}` }, words);
  element.addEventListener("click", (event) => {
    if (opensElsewhere(event)) return;
    event.preventDefault();
    open();
  });
  return element;
}

async function entry(asked) {
  try {
    return el("li", {}, ...(await asked));
  } catch (error) {
    return el("li", {}, ...(error.status === 404 ? gone() : [el("small", {}, error.message)]));
  }
}

function gone() {
  return [el("small", {}, "This is gone, or shared with others.")];
}

/** The list of past chats, and the bar it lives in. */

import { deleteSession, listSessions } from "./api.js";
import { problem } from "./answer.js";
import { announce, byId, el, icon, unseen } from "./dom.js";

const DAY = 86_400_000;
const NARROW = matchMedia("(max-width: 800px)");

/** Past chats, newest first, by pages; each can be opened and deleted. */
export class Sessions {
  #nav = byId("sessions");
  #end = el("div", { className: "end" });
  #known = new Map();
  #more = true;
  #cursor = undefined; // the last session of the last page; #known also holds others
  #loading = false;
  #current = null;
  #handlers;
  #observer;

  /**
   * @param {object} handlers
   * @param {(id: string) => void} handlers.onOpen
   * @param {(id: string) => void} handlers.onDeleted
   */
  constructor(handlers) {
    this.#handlers = handlers;
    this.#nav.addEventListener("click", (event) => this.#clicked(event));
    this.#observer = new IntersectionObserver(
      (entries) => entries.at(-1).isIntersecting && this.#loadMore(),
      { root: this.#nav, rootMargin: "0px 0px 300px" },
    );
    this.#nav.append(this.#end);
    this.#observer.observe(this.#end);
  }

  /** @param {string|null} id of the chat on the screen */
  set current(id) {
    this.#current = id;
    this.#draw();
  }

  /** @param {string} id @returns {object|undefined} */
  get(id) {
    return this.#known.get(id);
  }

  /**
   * Shows a session that was just made or changed, before the server's list is asked again.
   * One that is gone meanwhile (its first answer failed) does not come back by a change to it.
   * @param {object} session
   */
  put(session) {
    if (!session.updated_at && !this.#known.has(session.id)) return;
    this.#known.set(session.id, merged(this.#known.get(session.id), session));
    this.#draw();
  }

  /** Asks for the newest page again: titles, order, what was made or deleted elsewhere. */
  async refresh() {
    const page = await listSessions().catch(() => null);
    if (!page) return;
    const newest = new Set(page.data.map((session) => session.id));
    const oldest = page.has_more ? page.data.at(-1).updated_at : -Infinity;
    for (const [id, session] of this.#known) {
      if (!newest.has(id) && session.updated_at > oldest) this.#known.delete(id);
    }
    this.#take(page.data);
  }

  async #loadMore() {
    if (this.#loading || !this.#more) return;
    this.#loading = true;
    try {
      const page = await listSessions(this.#cursor);
      this.#more = page.has_more;
      this.#cursor = page.data.at(-1)?.id;
      this.#end.replaceChildren();
      this.#take(page.data);
      this.#again();
    } catch (error) {
      this.#end.replaceChildren(problem(error.message, () => this.#loadMore()));
    } finally {
      this.#loading = false;
    }
  }

  /** The observer only reports changes, and after a short page the end is still in sight. */
  #again() {
    this.#observer.unobserve(this.#end);
    if (this.#more) this.#observer.observe(this.#end);
  }

  #take(sessions) {
    for (const session of sessions) {
      this.#known.set(session.id, merged(this.#known.get(session.id), session));
    }
    this.#draw();
  }

  #ordered() {
    return [...this.#known.values()].sort(newestFirst);
  }

  #draw() {
    const focused = focusedIn(this.#nav);
    const groups = Map.groupBy(this.#ordered(), (session) => dayName(session.updated_at));
    const sections = [...groups].map(([name, sessions]) => {
      const rows = sessions.map((session) => this.#row(session));
      return el("section", {}, el("h2", {}, name), el("ul", {}, ...rows));
    });
    this.#nav.replaceChildren(...sections, this.#end);
    focused(this.#nav);
  }

  #row(session) {
    const title = session.title || "New chat";
    const link = el("a", { href: `?session=${encodeURIComponent(session.id)}`, title }, title);
    if (session.id === this.#current) link.setAttribute("aria-current", "page");
    if (session.temporary) link.prepend(icon("temporary"), unseen("Temporary: "));
    if (session.active_response_id) {
      link.append(el("i", { className: "busy" }), unseen(", answering"));
    }
    const remove = el(
      "button",
      { type: "button", className: "plain", title: "Delete", "aria-label": `Delete chat: ${title}` },
      icon("trash"),
    );
    return el("li", { "data-id": session.id }, link, remove);
  }

  #clicked(event) {
    const id = event.target.closest("li")?.dataset.id;
    if (!id) return;
    if (event.target.closest("button")) this.#confirm(id);
    else if (event.target.closest("a") && !opensElsewhere(event)) {
      event.preventDefault();
      this.#handlers.onOpen(id);
    }
  }

  async #confirm(id) {
    const name = this.#known.get(id)?.title || "New chat";
    const { confirmDelete } = await import("./confirm.js");
    confirmDelete({
      title: "Delete this chat?",
      text: `“${name}” and all that was said in it will be gone for good.`,
      action: () => deleteSession(id),
      done: () => this.#deleted(id),
      // The list may be drawn anew under the dialog: the control that opened it is looked up again.
      back: () => this.#nav.querySelector(`[data-id="${CSS.escape(id)}"] button`)?.focus(),
    });
  }

  #deleted(id) {
    const ids = this.#ordered().map((session) => session.id);
    const place = ids.indexOf(id);
    const next = ids[place + 1] ?? ids[place - 1];
    if (this.#cursor === id) this.#cursor = ids[place - 1];
    this.#known.delete(id);
    this.#draw();
    announce("Chat deleted.");
    (this.#nav.querySelector(`[data-id="${CSS.escape(next ?? "")}"] a`) ?? byId("new-chat")).focus();
    this.#handlers.onDeleted(id);
  }
}

/** As the server sorts; ids that are made within one second still sort by time. */
function newestFirst(a, b) {
  return b.updated_at - a.updated_at || (a.id < b.id ? 1 : -1);
}

/** A title that is only known here is kept until the server has one. */
function merged(before, session) {
  return { ...before, ...session, title: session.title ?? before?.title ?? null };
}

/** Drawing anew takes the focus away; this gives it back to the same control. */
function focusedIn(nav) {
  const active = document.activeElement;
  const id = nav.contains(active) ? active.closest("li")?.dataset.id : undefined;
  const tag = active?.tagName.toLowerCase();
  return (root) => id && root.querySelector(`[data-id="${CSS.escape(id)}"] ${tag}`)?.focus();
}

/**
 * Whether a click asks for a tab or window of its own.
 * @param {MouseEvent} event
 * @returns {boolean}
 */
export function opensElsewhere(event) {
  return event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
}

function dayName(seconds) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const time = seconds * 1000;
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last 7 days";
  const format = { month: "long", year: "numeric" };
  return new Intl.DateTimeFormat(document.documentElement.lang, format).format(time);
}

/**
 * Shows and hides the bar: beside the conversation, or over it where there is no room.
 * @returns {{closeOverlay: () => void}}
 */
export function setUpSidebar() {
  const [show, hide, scrim] = ["show-sidebar", "hide-sidebar", "scrim"].map(byId);
  const set = (open) => {
    document.documentElement.classList.toggle("with-sidebar", open);
    show.setAttribute("aria-expanded", String(open));
    scrim.hidden = !(open && NARROW.matches);
    byId("main").inert = open && NARROW.matches;
  };
  const close = () => {
    set(false);
    show.focus();
  };
  show.addEventListener("click", () => {
    set(true);
    hide.focus();
  });
  hide.addEventListener("click", close);
  scrim.addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !scrim.hidden && !document.querySelector("dialog[open]")) close();
  });
  NARROW.addEventListener("change", () => set(!NARROW.matches));
  set(!NARROW.matches);
  return { closeOverlay: () => NARROW.matches && set(false) };
}

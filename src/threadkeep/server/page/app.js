/**
 * Threadkeep's chat page: joins the list of chats, the conversation and the composer.
 * The server is the only memory: the address names the session, a reload asks for it again, and a
 * run that is still going is followed from its first event.
 */

import {
  Follower,
  cancelResponse,
  getResponse,
  getSession,
  listItems,
  listPending,
  readiness,
  send,
} from "./api.js";
import { answerStyles, plainText, problem } from "./answer.js";
import { Composer, Temporary } from "./composer.js";
import { announce, byId, el } from "./dom.js";
import { Sessions, opensElsewhere, setUpSidebar } from "./sidebar.js";
import { Transcript } from "./transcript.js";

const PROMPTS = [
  "Compare SQLite and Postgres in a short table",
  "Explain async and await with a small Python example",
  "Help me plan a quiet weekend by the sea",
];
const ENDINGS = {
  approval_required: "Waiting for a decision.",
  max_output_tokens: "The answer was cut at the length limit.",
};

/** The chat on the screen. */
class Chat {
  #id = null;
  #visit = 0; // grows with every chat opened: what was asked for an earlier one is dropped
  #run = null; // {id, answer, text (the message), follower} while the agent answers
  #waiting = null; // {approvals, answer, text} of a turn that waits for decisions
  #unsent = null; // {text, key} of a message that may or may not have arrived
  #transcript = new Transcript((id, answer) => this.#lookUp(id, answer));
  #composer = new Composer({ onSend: (text) => this.submit(text), onStop: () => this.#stop() });
  #sessions = new Sessions({
    onOpen: (id) => this.go(id),
    onDeleted: (id) => id === this.#id && this.go(null),
  });
  #sidebar = setUpSidebar();
  #temporary = new Temporary();
  #memory = null; // its panel, once it was opened

  /** Opens a chat and makes it the page's address; null is a new one. */
  go(id) {
    if (id !== addressed()) history.pushState(null, "", address(id));
    this.open(id);
  }

  /** Shows the chat that the address names. */
  open(id) {
    this.#leave();
    this.#id = id;
    this.#sidebar.closeOverlay();
    this.#sessions.current = id;
    this.#setTitle(id ? this.#sessions.get(id)?.title : null);
    this.#temporary.show(Boolean(history.state?.temporary), Boolean(id));
    this.#composer.focus();
    if (id) this.#load(id);
    else this.#transcript.showInstead(greeting((text) => this.submit(text)));
  }

  /** Sends a message; when that fails the text is given back. */
  async submit(text) {
    const visit = this.#visit;
    if (!this.#id) this.#transcript.clear();
    this.#transcript.addUser(text);
    const answer = this.#transcript.beginAnswer();
    this.#composer.sending();
    if (this.#waiting) this.#waiting.approvals.paused = true;
    showProblem(null);
    announce("The agent is answering.");
    const key = this.#unsent?.text === text ? this.#unsent.key : newKey();
    try {
      const sent = send(text, this.#id, key, this.#temporary.on);
      const [reply] = await Promise.all([sent, answerStyles()]);
      this.#unsent = null;
      if (visit === this.#visit) this.#sent(reply, text, answer);
    } catch (error) {
      this.#unsent = { text, key };
      if (visit === this.#visit) this.#notSent(error, text, answer);
    }
    this.#sessions.refresh();
  }

  /**
   * Shows what is remembered.
   * @param {string} [id] the memory to begin with
   */
  async openMemory(id) {
    const { MemoryPanel } = await import("./memory.js");
    this.#memory ??= new MemoryPanel((id) => this.go(id));
    this.#memory.open(id);
  }

  /** Asks again for what may have changed, when the reader comes back to this page. */
  refresh() {
    this.#sessions.refresh();
    this.#waiting?.approvals.refresh();
  }

  #sent(reply, text, answer) {
    const id = reply.custom_outputs.session_id;
    const temporary = this.#temporary.on;
    this.#temporary.show(temporary, true);
    // Until the first answer there is no session that knows it.
    history.replaceState({ temporary }, "", address(id));
    if (!this.#id) {
      this.#id = id;
      this.#setTitle(text.slice(0, 80));
      this.#sessions.current = id;
      const now = Math.floor(Date.now() / 1000);
      this.#sessions.put({ id, title: text.slice(0, 80), updated_at: now, temporary });
    }
    this.#waiting?.approvals.wentOn();
    this.#waiting = null;
    this.#follow(reply.id, answer, text);
  }

  #notSent(error, text, answer) {
    this.#transcript.removeTurn(answer);
    this.#composer.idle();
    this.#composer.restore(text);
    this.#composer.focus();
    if (this.#waiting) this.#waiting.approvals.paused = false;
    if (!this.#id) this.#again();
    showProblem(`Not sent. ${error.message}`);
    announce("");
  }

  /** A new chat, as it was before its first message. */
  #again() {
    const { on } = this.#temporary;
    this.open(null);
    this.#temporary.show(on, false);
  }

  #leave() {
    this.#visit += 1;
    this.#run?.follower.close();
    this.#run = null;
    this.#waiting?.approvals.leave();
    this.#waiting = null;
    this.#composer.idle();
    showProblem(null);
    notice.show({ lost: false });
    announce("");
  }

  async #load(id) {
    const visit = this.#visit;
    this.#transcript.showInstead(el("p", { className: "note late" }, "Loading…"));
    try {
      const [session, page, pending] = await Promise.all([
        getSession(id),
        listItems(id),
        listPending(id),
        answerStyles(),
      ]);
      const open = await stopped(session, page, pending.data);
      if (visit !== this.#visit) return;
      if (open) this.#showOpen(session, open);
      else this.#show(session, page);
    } catch (error) {
      if (visit === this.#visit) this.#notLoaded(id, error);
    }
  }

  #notLoaded(id, error) {
    if (error.status === 404) {
      this.#transcript.showInstead(problem("This chat doesn’t exist, or it was deleted."));
      this.#temporary.show(this.#temporary.on, false);
    } else {
      this.#transcript.showInstead(problem(error.message, () => this.open(id)));
    }
  }

  #know(session) {
    this.#sessions.put(session);
    this.#temporary.show(session.temporary, true);
    this.#setTitle(this.#sessions.get(session.id).title);
  }

  #show(session, page) {
    const active = session.active_response_id;
    this.#know(session);
    this.#transcript.show(this.#page(session.id, page, active));
    if (!active) return;
    const asked = page.data.find((item) => item.role === "user" && item.response_id === active);
    this.#follow(active, this.#transcript.beginAnswer(), asked ? plainText(asked.content) : "");
  }

  /** A chat whose last turn waits for decisions, or goes on after them. */
  #showOpen(session, { page, base, said, approvals, text, module }) {
    const active = session.active_response_id;
    this.#know(session);
    this.#transcript.show(this.#page(session.id, page, null));
    const answer = this.#transcript.addAnswer();
    for (const item of base) answer.addItem(item);
    if (active) return this.#follow(active, answer.begin(), text);
    answer.mark();
    for (const item of said) answer.addItem(item);
    this.#wait(new module.Approvals(approvals, this.#deciding()), answer, text);
  }

  /** A page of items as the transcript takes it, with the way to the page before it. */
  #page(id, { data, has_more: more }, active) {
    // What the running turn has stored so far comes again with its events.
    const streamed = (item) => active && item.role !== "user" && item.response_id === active;
    const items = data.filter((item) => !streamed(item)).toReversed();
    const older = async () => this.#page(id, await listItems(id, data.at(-1).seq), active);
    return { items, older: more ? older : null };
  }

  #follow(id, answer, text) {
    this.#composer.running();
    const follower = new Follower(id, {
      onEvent: (event) => this.#event(event),
      onConnection: (lost) => notice.show({ lost }),
      onGap: (error) => (error ? this.#failed(error.message) : this.open(this.#id)),
    });
    this.#run = { id, answer, text, follower };
  }

  #failed(message) {
    const { answer, text } = this.#run;
    const retry = () => {
      this.#transcript.removeTurn(answer);
      this.submit(text);
    };
    answer.fail(message, text ? retry : null);
    this.#ended("The answer failed.");
  }

  #event(event) {
    const { answer } = this.#run;
    const response = event.response;
    if (event.type === "response.failed") {
      this.#failed(response.error?.message ?? "The agent could not answer.");
    } else if (event.type === "response.completed") {
      answer.finish();
      this.#ended("Answer finished.");
      this.#tellRecalled(response, answer);
    } else if (event.type === "response.incomplete" || event.type === "response.cancelled") {
      const reason = response.incomplete_details?.reason;
      const note = ENDINGS[reason] ?? "Stopped.";
      const { text } = this.#run;
      answer.finish(note);
      this.#ended(note);
      if (reason === "approval_required") this.#ask(response.id, answer, text);
    } else {
      answer.apply(event);
    }
  }

  /** Of a stored answer it is the response that tells what was remembered, for as long as it is kept. */
  async #lookUp(id, answer) {
    const response = await getResponse(id).catch(() => null);
    if (response) this.#tellRecalled(response, answer);
  }

  /** Shows under an answer what was remembered for it. */
  async #tellRecalled({ custom_outputs: { recalled } }, answer) {
    if (!recalled?.length) return;
    const { Recalled } = await import("./recalled.js");
    const handlers = { onOpen: (id) => this.go(id), onMemory: (id) => this.openMemory(id) };
    answer.addBelow(new Recalled(recalled, handlers).element);
  }

  /** The run has ended to wait: asks what for. */
  async #ask(id, answer, text) {
    const visit = this.#visit;
    try {
      const module = await import("./approvals.js");
      const approvals = await module.askedBy(id);
      if (visit !== this.#visit) return;
      this.#wait(new module.Approvals(approvals, this.#deciding()), answer, text);
    } catch (error) {
      if (visit === this.#visit) answer.fail(error.message, () => this.#ask(id, answer, text));
    }
  }

  #wait(approvals, answer, text) {
    answer.finish();
    answer.attach(approvals.element);
    announce(approvals.question);
    if (this.#run) approvals.wentOn();
    else this.#waiting = { approvals, answer, text };
  }

  #deciding() {
    return {
      onDeciding: () => this.#composer.sending(),
      onNotYet: () => this.#composer.idle(),
      onRun: (id) => this.#goOn(id),
      onGone: () => this.#reopen(),
    };
  }

  /** The turn goes on, with another run, where it had stopped. */
  #goOn(id) {
    const { approvals, answer, text } = this.#waiting;
    this.#waiting = null;
    if (approvals.inDoubt) answer.again(approvals.element, approvals.calls);
    this.#follow(id, answer.begin(), text);
    this.#sessions.refresh();
  }

  /** The chat has gone on elsewhere: shows how, and keeps what was said about the decisions. */
  async #reopen() {
    const { approvals } = this.#waiting;
    this.#leave();
    await this.#load(this.#id);
    this.#transcript.attach(approvals.element, approvals.run);
  }

  #ended(said) {
    this.#run = null;
    this.#composer.idle();
    notice.show({ lost: false });
    announce(said);
    this.#sessions.put({ id: this.#id, active_response_id: null });
    this.#sessions.refresh().then(() => this.#setTitle(this.#sessions.get(this.#id)?.title));
  }

  async #stop() {
    const run = this.#run;
    try {
      await cancelResponse(run.id);
    } catch (error) {
      if (run !== this.#run) return;
      this.#composer.running();
      showProblem(`Not stopped. ${error.message}`);
    }
  }

  #setTitle(title) {
    byId("title").textContent = title || "New chat";
    document.title = title ? `${title} · Threadkeep` : "Threadkeep";
  }
}

/** The last turn of a chat, when it has stopped for decisions (see approvals.js); else null. */
async function stopped({ id, active_response_id: active }, page, pending) {
  if (!active && !pending.length) return null;
  const module = await import("./approvals.js");
  const turn = await module.openTurn(id, active, pending, page);
  return turn && { ...turn, module };
}

function addressed(what = "session") {
  return new URLSearchParams(location.search).get(what);
}

function address(id) {
  return id ? `?session=${encodeURIComponent(id)}` : "./";
}

/** crypto.randomUUID is missing where the page comes over plain HTTP from another machine. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function showProblem(message) {
  byId("problem").replaceChildren(...(message ? [problem(message)] : []));
}

/** The one line above the composer that says what the page waits for. */
class Notice {
  #lost = false;
  #waiting = "";

  show({ lost = this.#lost, waiting = this.#waiting }) {
    this.#lost = lost;
    this.#waiting = waiting;
    const text = lost ? "Connection lost. Trying again…" : waiting;
    const element = byId("notice");
    if (element.textContent !== text) element.textContent = text;
  }
}

/** Asks each second, only until the server is ready. */
async function watchReadiness() {
  const { ready, loading, message } = await readiness();
  if (ready) return notice.show({ waiting: "" });
  const waiting = loading ? "The embedded model is loading…" : message || "Not ready yet…";
  notice.show({ waiting });
  setTimeout(watchReadiness, 1000);
}

function greeting(onPrompt) {
  const prompts = PROMPTS.map((text) => {
    const button = el("button", { type: "button" }, text);
    button.addEventListener("click", () => onPrompt(text));
    return el("li", {}, button);
  });
  const words = el("h2", {}, "Hello. What’s on your mind?");
  return el("div", { className: "greeting" }, words, el("ul", {}, ...prompts));
}

const notice = new Notice();
const chat = new Chat();
for (const link of document.querySelectorAll(".new-chat")) {
  link.addEventListener("click", (event) => {
    if (opensElsewhere(event)) return;
    event.preventDefault();
    chat.go(null);
  });
}
byId("find").addEventListener(
  "focus",
  () => import("./search.js").then(({ Search }) => new Search((id) => chat.go(id))),
  { once: true },
);
byId("memory").addEventListener("click", () => chat.openMemory());
addEventListener("popstate", () => chat.open(addressed()));
addEventListener("pageshow", (event) => event.persisted && chat.open(addressed()));
document.addEventListener("visibilitychange", () => document.hidden || chat.refresh());
chat.open(addressed());
if (addressed("memory")) chat.openMemory(addressed("memory"));
watchReadiness();

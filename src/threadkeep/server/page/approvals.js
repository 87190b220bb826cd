/**
 * Tool calls that wait for a person: a card each, where the turn stopped.
 * The page loads this module only when a session has such a turn.
 */

import { call, getResponse, listItems } from "./api.js";
import { plainText, pretty, problem, scrollable } from "./answer.js";
import { announce, el, icon, style } from "./dom.js";

const AGAIN = 2000; // ms, until it is asked again which run goes on
const LONGEST_REASON = 2000;

await style("approvals.css");

/** What a person reads, by kind: the buttons, and what was decided. */
const WORDS = {
  needs_approval: { yes: "Approve", no: "Decline", approved: "Approved", rejected: "Declined" },
  in_doubt: { yes: "Run it again", no: "Don’t", approved: "Run again", rejected: "Not run again" },
};
const UNDECIDED = {
  expired: "Not decided in time.",
  closed: "Not decided: the conversation went on.",
};

/**
 * The approvals that a run has asked for, in its order, with what was decided since.
 * @param {string} responseId
 * @returns {Promise<object[]>}
 */
export async function askedBy(responseId) {
  const { output } = await getResponse(responseId);
  const requests = output.filter((item) => item.type === "mcp_approval_request");
  return Promise.all(requests.map((item) => getApproval(item.id)));
}

/**
 * The last turn of a session, when it waits for decisions or goes on after them.
 * @param {string} sessionId
 * @param {string|null} active the run that is going on
 * @param {object[]} pending approvals
 * @param {{data: object[], has_more: boolean}} page the session's newest items, newest first
 * @returns {Promise<object|null>} `approvals`, those asked for, when it waits; `text`, the user's;
 *   `base`, the items before those of its last run; `said`, the items of that; `page`, the rest
 */
export async function openTurn(sessionId, active, pending, page) {
  const waiting = active ? null : pending.at(-1).previous_response_id;
  const approvals = waiting ? await askedBy(waiting) : [];
  // Only a run in doubt is made again, so only then it matters where it began.
  const known = waiting && approvals[0].kind !== "in_doubt";
  const { goesOn, calls } = known ? { goesOn: true, calls: null } : await beginning(active ?? waiting);
  if (active && !goesOn) return null;
  const whole = await toUser(sessionId, page);
  const at = whole.data.findIndex((item) => item.role === "user");
  const after = whole.data.slice(0, at < 0 ? Infinity : at).toReversed();
  const items = after.filter(({ role }) => role !== "system" && role !== "developer");
  const first = (item) => item.type === "function_call_output" && calls?.has(item.call_id);
  const start = calls ? items.findIndex(first) : 0;
  const base = start < 0 ? items : items.slice(0, start);
  return {
    approvals,
    base,
    said: items.slice(base.length).filter((item) => !isPlaceholder(item, waiting)),
    page: { ...whole, data: whole.data.slice(after.length) },
    text: at < 0 ? "" : plainText(whole.data[at].content),
  };
}

/** What stands for the output of a call that was not made, as long as its turn can go on. */
function isPlaceholder(item, waiting) {
  return item.response_id === waiting && item.type === "function_call_output" && item.status === "incomplete";
}

/**
 * Where a run's events begin: with the outputs of `calls`, or with its turn (null). A run that
 * goes on after a call in doubt says again what the run before it said.
 */
async function beginning(id) {
  for (let goesOn = false; ; goesOn = true) {
    const { previous_response_id: before } = await getResponse(id);
    const [first, ...others] = before ? await askedBy(before).catch(ifGone) : [];
    if (first?.response_id !== id) return { goesOn, calls: null };
    const calls = new Set([first, ...others].map((approval) => approval.call_id));
    if (first.kind === "needs_approval") return { goesOn: true, calls };
    id = before;
  }
}

/** A response that was deleted asks for nothing. */
function ifGone(error) {
  if (error.status === 404) return [];
  throw error;
}

/** A page that holds the whole of the last turn. */
async function toUser(sessionId, page) {
  let { data, has_more: more } = page;
  while (more && !data.some((item) => item.role === "user")) {
    const older = await listItems(sessionId, data.at(-1).seq);
    data = [...data, ...older.data];
    more = older.has_more;
  }
  return { data, has_more: more };
}

function getApproval(id) {
  return call(`approvals/${encodeURIComponent(id)}`);
}

function decide(id, decision) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(decision) };
  return call(`approvals/${encodeURIComponent(id)}`, options);
}

/** The cards of one run. */
export class Approvals {
  element = el("div", { className: "approvals" });
  #cards;
  #handlers;
  #left = false;
  #paused = false;

  /**
   * @param {object[]} approvals of one run
   * @param {object} handlers
   * @param {() => void} handlers.onDeciding what may be the last decision is on its way
   * @param {() => void} handlers.onNotYet it was not the last one, or was not taken
   * @param {(id: string) => void} handlers.onRun the run that goes on with the turn
   * @param {() => void} handlers.onGone the session has gone on elsewhere
   */
  constructor(approvals, handlers) {
    this.#handlers = handlers;
    this.#cards = approvals.map((approval) => {
      return new Card(approval, (card, decision) => this.#decide(card, decision));
    });
    this.element.append(...this.#cards.map((card) => card.element));
  }

  /** Whether the run is made again, rather than gone on with. */
  get inDoubt() {
    return this.#cards[0].approval.kind === "in_doubt";
  }

  /** @returns {string} the id of the response that asks */
  get run() {
    return this.#cards[0].approval.previous_response_id;
  }

  /** @returns {string[]} the ids of the calls */
  get calls() {
    return this.#cards.map((card) => card.approval.call_id);
  }

  /** @returns {string} what is asked, for screen readers */
  get question() {
    const [first, ...others] = this.#pending;
    if (!first) return "";
    return others.length ? `${others.length + 1} calls wait for a decision.` : first.approval.message;
  }

  /** Nobody looks at them any more. */
  leave() {
    this.#left = true;
  }

  /** @param {boolean} waits while a message is on its way, nothing is decided */
  set paused(waits) {
    this.#paused = waits;
    for (const card of this.#pending) card.busy = waits;
  }

  /** The user has sent a message instead; what was decided elsewhere before is shown. */
  async wentOn() {
    this.leave();
    const open = this.#pending;
    await this.#readAgain().catch(() => null);
    for (const card of open) {
      if (["pending", "closed"].includes(card.approval.status)) card.wentOn();
    }
  }

  /** Looks whether something was decided elsewhere. */
  async refresh() {
    if (this.#left) return;
    await this.#readAgain().catch(() => null);
    if (!this.#left) this.#settle();
  }

  get #pending() {
    return this.#cards.filter((card) => card.approval.status === "pending");
  }

  async #decide(card, decision) {
    const last = this.#pending.length === 1 || Boolean(decision.always_approve);
    if (last) this.#handlers.onDeciding();
    card.sending();
    try {
      card.decided(await decide(card.approval.id, decision));
    } catch (error) {
      card.failed(error.message);
      if (last) this.#handlers.onNotYet();
      if (error.status === 409) await this.refresh();
      return;
    }
    this.#announce(card);
    const goesOn = card.approval.response_id;
    if (goesOn) this.#run(goesOn);
    else if (last) this.#handlers.onNotYet();
    // With one call others may have been decided: those of the same tool, and elsewhere.
    if (goesOn) await this.#readAgain().catch(() => null);
    else if (last) await this.refresh();
  }

  #announce(card) {
    const next = this.#pending[0];
    announce(`${card.verdict}. ${this.question}`);
    if (next && card.element.contains(document.activeElement)) next.element.focus();
  }

  /** Reads what is open, or decided without a run that goes on with it. */
  async #readAgain() {
    const open = this.#cards.filter(({ approval }) => !approval.response_id);
    await Promise.all(
      open.map(async (card) => {
        const approval = await getApproval(card.approval.id);
        if (approval.status !== card.approval.status) card.show(approval);
        else card.approval = approval;
      }),
    );
  }

  #settle() {
    const approvals = this.#cards.map((card) => card.approval);
    const run = approvals.find((approval) => approval.response_id);
    if (run) this.#run(run.response_id);
    else if (approvals.some(({ status }) => status === "closed")) this.#handlers.onGone();
    else if (approvals.every(({ status }) => status === "approved" || status === "rejected")) {
      // A server goes on with it by and by.
      setTimeout(() => this.refresh(), AGAIN);
    }
  }

  #run(id) {
    if (this.#left) return;
    this.leave();
    if (this.#paused) this.#handlers.onGone();
    else this.#handlers.onRun(id);
  }
}

/** One call: what is asked, and the ways to answer; then what was decided. */
class Card {
  #words;
  #onDecide;
  #reason;
  #always = null;
  #controls;
  #end = el("p", { className: "verdict", hidden: true });
  #problem = el("div");

  /**
   * @param {object} approval
   * @param {(card: Card, decision: object) => void} onDecide
   */
  constructor(approval, onDecide) {
    this.approval = approval;
    this.#words = WORDS[approval.kind];
    this.#onDecide = onDecide;
    const question = el("p", { className: "question", id: `asked-${approval.id}` }, approval.message);
    this.#controls = el("div", { className: "controls" }, ...this.#ways());
    this.#controls.addEventListener("click", keepSingle, { capture: true });
    this.element = el(
      "div",
      { className: "approval", role: "group", tabIndex: -1, "aria-labelledby": question.id },
      icon("hand"),
      el("div", {}, question, ...asked(approval), this.#controls, this.#end, this.#problem),
    );
    if (approval.status !== "pending") this.show(approval);
  }

  /** @returns {string} what was decided, in words */
  get verdict() {
    const { status, reason } = this.approval;
    const word = UNDECIDED[status] ?? this.#words[status];
    if (reason) return `${word}: ${reason}`;
    return this.approval.always_approve ? `${word} for this whole conversation` : word;
  }

  /** @param {boolean} busy whether it can't be decided just now */
  set busy(busy) {
    this.#controls.inert = busy;
    this.element.setAttribute("aria-busy", String(busy));
  }

  sending() {
    const held = this.element.contains(document.activeElement);
    this.#problem.replaceChildren();
    this.busy = true;
    if (held) this.element.focus({ preventScroll: true }); // what is inert loses it
  }

  /** @param {object} approval as the server has it now */
  decided(approval) {
    this.#problem.replaceChildren();
    this.show(approval);
  }

  /** @param {string} message */
  failed(message) {
    this.busy = false;
    this.#problem.replaceChildren(problem(message));
  }

  /** The user has sent a message instead. */
  wentOn() {
    this.show({ ...this.approval, status: "closed" }, "Not decided: you went on.");
  }

  /**
   * Shows how it ended.
   * @param {object} approval
   * @param {string} [words] instead of the usual ones
   */
  show(approval, words) {
    this.approval = approval;
    this.busy = false;
    this.#controls.hidden = true;
    this.#end.hidden = false;
    const made = this.approval.status === "approved";
    this.#end.replaceChildren(icon(made ? "check" : "cross"), words ?? this.verdict);
    this.element.classList.add("over");
  }

  #ways() {
    const { yes, no } = this.#words;
    const approve = el("button", { type: "button", className: "yes" }, yes);
    approve.addEventListener("click", () => this.#answer(true));
    this.#reason = el("input", {
      type: "text",
      maxLength: LONGEST_REASON,
      placeholder: "Why not? (optional)",
      "aria-label": "Why not? Optional; the agent is told.",
    });
    const decline = el("button", { type: "submit" }, no);
    const form = el("form", { autocomplete: "off" }, decline, this.#reason);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#answer(false);
    });
    const buttons = el("div", { className: "answers" }, approve, form);
    if (this.approval.kind !== "needs_approval") return [buttons];
    this.#always = el("input", { type: "checkbox" });
    const allow = el("span", {}, "Always allow ", el("code", {}, this.approval.name), " in this conversation");
    return [el("label", {}, this.#always, allow), buttons];
  }

  #answer(approve) {
    const decision = { approve };
    const reason = this.#reason.value.trim();
    if (!approve && reason) decision.reason = reason;
    if (approve && this.#always?.checked) decision.always_approve = true;
    this.#onDecide(this, decision);
  }
}

/** A decided card shrinks: the second click of two would decide the one that comes in its place. */
function keepSingle(event) {
  if (event.detail < 2 || !event.target.closest("button")) return;
  event.preventDefault();
  event.stopPropagation();
}

/** What would be called, as it is: nothing of it is ever taken for HTML. */
function asked({ name, arguments: given }) {
  const title = el("p", { className: "called" }, el("code", {}, name));
  if (!given || given === "{}") {
    title.append(el("span", { className: "note" }, "without arguments"));
    return [title];
  }
  const text = el("pre", {}, pretty(given));
  scrollable(text, `Arguments of ${name}`);
  return [title, text];
}

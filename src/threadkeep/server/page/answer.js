/**
 * What the agent did in one turn: texts and folded tool steps, in the order they came.
 * The same class shows stored items and a run that is still going.
 */

import { copyButton, el, icon, setHTML, style, unseen } from "./dom.js";

const LONGEST_SHOWN = 20_000;
/** Items that are no steps of their own: an output is shown at its call, a request as a card. */
const NOT_SHOWN = new Set(["function_call_output", "mcp_approval_request"]);

let styles = null;

/**
 * What code, tables and steps look like.
 * @returns {Promise<unknown>} until it is known
 */
export function answerStyles() {
  styles ??= Promise.all(["answer.css", "code.css"].map(style)).then((events) => {
    if (events.some(({ type }) => type === "error")) styles = null; // to be tried again
  });
  return styles;
}

/** A text as blocks of HTML. Changes are drawn once a frame, however many deltas came. */
class Text {
  element = el("div", { className: "text" });
  plain = "";
  #blocks = [];
  #dirty = Infinity;
  #frame = 0;

  /** @param {number} from @param {string[]} blocks what replaces the blocks from there on */
  replace(from, blocks) {
    if (from === this.#blocks.length && !blocks.length) return;
    this.#blocks.splice(from, Infinity, ...blocks);
    this.#dirty = Math.min(this.#dirty, from);
    this.#frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Without HTML from the server the text is shown as it is. */
  showPlain() {
    this.element.classList.add("raw");
    this.element.textContent = this.plain;
  }

  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    while (this.element.children.length > this.#dirty) this.element.lastChild.remove();
    for (const html of this.#blocks.slice(this.#dirty)) this.element.append(block(html));
    this.#dirty = Infinity;
    levelHeadings(this.element);
  }
}

function block(html) {
  const element = el("div", { className: "block" });
  setHTML(element, html);
  for (const pre of element.querySelectorAll("pre")) frameCode(pre);
  for (const table of element.querySelectorAll("table")) frameTable(table);
  return element;
}

/** Wide code scrolls by itself, with the keyboard too, and can be copied. */
function frameCode(pre) {
  const language = pre.dataset.language ?? "";
  const head = el("div", { className: "code-head" }, el("span", {}, language));
  const frame = el("div", { className: "code" }, head);
  pre.replaceWith(frame);
  scrollable(pre, language ? `Code, ${language}` : "Code");
  head.append(copyButton("Copy code", () => pre.textContent));
  frame.append(pre);
}

function frameTable(table) {
  const frame = el("div", { className: "wide" });
  table.replaceWith(frame);
  frame.append(table);
  scrollable(frame, "Table");
}

/**
 * What scrolls by itself can be reached with the keyboard.
 * @param {HTMLElement} element
 * @param {string} label
 */
export function scrollable(element, label) {
  element.tabIndex = 0;
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
}

/** Models begin at any level; below a turn's own heading (2) no level is ever left out. */
function levelHeadings(element) {
  const open = [];
  for (const heading of element.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.tagName[1]);
    while (open.length && open.at(-1) >= level) open.pop();
    open.push(level);
    heading.setAttribute("aria-level", String(2 + open.length));
  }
}

/** One call of a tool, folded: name, arguments, output. */
class Step {
  #arguments = "";
  #brief = el("span", { className: "brief" });
  #state = unseen("");
  #body = el("div", { className: "step-body" });

  /** @param {string} name @param {string} [drawing] */
  constructor(name, drawing = "tool") {
    const summary = el("summary", {}, icon(drawing), el("span", { className: "name" }, name));
    summary.append(this.#brief, this.#state, icon("chevron"));
    this.element = el("details", { className: "step" }, summary, this.#body);
  }

  /** @param {boolean} running */
  set running(running) {
    this.element.classList.toggle("running", running);
    this.#state.textContent = running ? ", running" : "";
  }

  addArguments(delta) {
    this.setArguments(this.#arguments + delta);
  }

  setArguments(text) {
    this.#arguments = text;
    this.#brief.textContent = brief(text);
    if (text && text !== "{}") this.setPart("Arguments", text);
  }

  /** @param {string} label @param {unknown} value */
  setPart(label, value) {
    const text = pretty(value);
    const existing = [...this.#body.children].find((part) => part.dataset.label === label);
    if (existing) {
      existing.lastChild.textContent = text;
      return;
    }
    const pre = el("pre", {}, text);
    scrollable(pre, label);
    const part = el("div", { "data-label": label }, el("div", { className: "label" }, label), pre);
    this.#body.append(part);
  }
}

/** The values of the arguments, for the folded line; half-written JSON says nothing yet. */
function brief(json) {
  const values = parsed(json);
  if (values === null || typeof values !== "object") return "";
  const words = Object.values(values).map((v) => (typeof v === "object" ? JSON.stringify(v) : v));
  return words.join(", ").slice(0, 120);
}

/**
 * A value, or JSON, as text to be read; very long ones are cut.
 * @param {unknown} value
 * @returns {string}
 */
export function pretty(value) {
  const content = typeof value === "string" ? (parsed(value) ?? value) : value;
  const text = typeof content === "object" ? JSON.stringify(content, null, 2) : String(value);
  if (text.length <= LONGEST_SHOWN) return text;
  return `${text.slice(0, LONGEST_SHOWN)}\n… ${text.length - LONGEST_SHOWN} more characters`;
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

/**
 * The plain text of a message's content.
 * @param {string|object[]|undefined} content a string or a list of parts
 * @returns {string}
 */
export function plainText(content) {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => part.text ?? part.refusal ?? "").join("");
}

/** The agent's side of one turn. */
export class Answer {
  #body = el("div", { className: "answer-body" });
  #foot = el("div", { className: "answer-foot" });
  #texts = [];
  #calls = [];
  #open = new Map(); // output index -> what is being written there
  #said = []; // elements of the run that is shown, and the calls it has answered
  #answered = [];
  #anchor = null; // said before this, until the first of #awaited has its output
  #awaited = new Set();

  constructor() {
    const heading = unseen("The agent answered", "h2");
    this.element = el("article", { className: "answer" }, heading, this.#body, this.#foot);
  }

  /**
   * Waits for the first words of a run: the turn's first, or one that goes on with it.
   * @returns {Answer} itself
   */
  begin() {
    this.mark();
    this.#open.clear();
    this.#foot.replaceChildren();
    for (const call of this.#calls) call.step.running = !call.answered;
    this.element.classList.add("live");
    this.#body.append(el("div", { className: "waiting" }, el("i"), el("i"), el("i")));
    return this;
  }

  /** What comes now is of another run of this turn. */
  mark() {
    this.#said = [];
    this.#answered = [];
  }

  /**
   * Takes back what came since the mark, for a run that says all of it again.
   * @param {HTMLElement} place it is said again before this
   * @param {Iterable<string>} calls and what follows their outputs, behind it
   */
  again(place, calls) {
    for (const element of this.#said) element.remove();
    this.#texts = this.#texts.filter(({ element }) => this.#body.contains(element));
    this.#calls = this.#calls.filter(({ step }) => this.#body.contains(step.element));
    for (const call of this.#answered) call.answered = false;
    this.#anchor = place;
    this.#awaited = new Set(calls);
  }

  /** @param {HTMLElement} element that is not of the conversation, behind what was said so far */
  attach(element) {
    this.#body.append(element);
  }

  /** @param {object} item a stored item */
  addItem(item) {
    if (item.type === "unreadable") this.#addNote("An entry here is damaged and can’t be shown.");
    else if (item.type === "function_call_output") this.#output(item);
    else if ((item.type ?? "message") === "message") this.#fillText(this.#addText(), item);
    else this.#addStep(item);
  }

  /** @param {object} event of a run */
  apply(event) {
    const index = event.output_index;
    const open = this.#open.get(index);
    switch (event.type) {
      case "response.output_item.added":
        return this.#added(index, event.item);
      case "response.output_text.delta":
      case "response.output_text.done":
      case "response.refusal.delta":
        return this.#textEvent(this.#textOf(index, event.content_index ?? 0), event);
      case "response.function_call_arguments.delta":
        return open?.step?.addArguments(event.delta);
      case "response.output_item.done":
        return this.#done(index, event.item);
      case "threadkeep.resumed":
        return event.voided.forEach((each) => this.#void(each));
    }
  }

  /**
   * The run is over.
   * @param {string} [note] why it ended before its end
   */
  finish(note = "") {
    this.element.classList.remove("live");
    this.#body.querySelector(".waiting")?.remove();
    for (const text of this.#texts) text.draw();
    for (const call of this.#calls) call.step.running = false;
    this.#foot.replaceChildren();
    if (note) this.#foot.append(el("p", { className: "note" }, note));
    if (this.plain) this.#foot.append(copyButton("Copy answer", () => this.plain));
  }

  /** @param {HTMLElement} element that tells of the run as a whole, once it is over */
  addBelow(element) {
    this.#foot.append(element);
  }

  /**
   * The run failed.
   * @param {string} message
   * @param {(() => void)|null} retry
   */
  fail(message, retry) {
    this.finish();
    this.#foot.prepend(problem(message, retry));
  }

  /** Everything the agent said, as the markdown it wrote. */
  get plain() {
    return this.#texts.map((text) => text.plain).filter(Boolean).join("\n\n");
  }

  #addNote(text) {
    this.#append(el("p", { className: "note" }, text));
  }

  #append(element) {
    this.#said.push(element);
    this.#body.insertBefore(element, this.#anchor ?? this.#body.querySelector(".waiting"));
  }

  #added(index, item) {
    if (NOT_SHOWN.has(item.type)) return;
    if (item.type === "message") this.#open.set(index, { texts: new Map() });
    else this.#open.set(index, { step: this.#addStep(item, true) });
  }

  #done(index, item) {
    if (item.type === "function_call_output") return this.#output(item);
    if (NOT_SHOWN.has(item.type)) return;
    if (item.type === "message") return this.#messageDone(index, item);
    if (!this.#open.has(index)) this.#added(index, item);
    const { step } = this.#open.get(index);
    if (item.type === "function_call") step.setArguments(item.arguments);
    else describe(step, item);
  }

  /** Takes away what another server says anew, because the first one did not end it. */
  #void(index) {
    const { texts, step } = this.#open.get(index) ?? {};
    for (const text of texts?.values() ?? []) {
      text.element.remove();
      this.#texts = this.#texts.filter((other) => other !== text);
    }
    step?.element.remove();
    this.#calls = this.#calls.filter((call) => call.step !== step);
    this.#open.delete(index);
  }

  /** A message that was never streamed, or not as HTML, is shown from its end. */
  #messageDone(index, item) {
    const streamed = this.#open.get(index)?.texts.size > 0;
    if (!streamed || item.html) this.#fillText(this.#textOf(index, 0), item);
  }

  #fillText(text, item) {
    text.plain = plainText(item.content);
    if (item.html) text.replace(0, item.html);
    else text.showPlain();
    text.draw();
  }

  #textOf(index, part) {
    if (!this.#open.get(index)?.texts) this.#open.set(index, { texts: new Map() });
    const { texts } = this.#open.get(index);
    if (!texts.has(part)) texts.set(part, this.#addText());
    return texts.get(part);
  }

  #textEvent(text, event) {
    text.plain = event.text ?? text.plain + (event.delta ?? "");
    if (event.html) text.replace(event.html.from, event.html.blocks);
    else if (event.delta) text.showPlain();
  }

  #addText() {
    const text = new Text();
    this.#texts.push(text);
    this.#append(text.element);
    return text;
  }

  #addStep(item, running = false) {
    const step = newStep(item);
    this.#append(step.element);
    if (item.type !== "function_call") return step;
    this.#calls.push({ id: item.call_id, step });
    step.running = running;
    step.setArguments(item.arguments ?? "");
    return step;
  }

  /** Some models use a call's id again, so the newest one without output is meant. */
  #output(item) {
    const waits = (call) => call.id === item.call_id && !call.answered;
    const call = this.#calls.findLast(waits) ?? { step: this.#addStep(item) };
    call.answered = true;
    this.#answered.push(call);
    if (this.#awaited.has(item.call_id)) this.#anchor = null;
    call.step.running = false;
    call.step.setPart("Output", outputText(item.output));
  }
}

function newStep(item) {
  if (item.type === "function_call") return new Step(item.name);
  if (item.type === "reasoning") return describe(new Step("Thought", "thought"), item);
  return describe(new Step(item.name ?? item.type.replaceAll("_", " ")), item);
}

/** Steps that hosted tools and newer models bring are shown as they came, folded. */
function describe(step, item) {
  if (item.type === "reasoning") {
    const summary = plainText(item.summary);
    step.element.hidden = !summary;
    step.setPart("Summary", summary);
  } else if (item.type !== "function_call_output") {
    step.setPart("Details", item);
  }
  return step;
}

function outputText(output) {
  return Array.isArray(output) ? plainText(output) || output : output;
}

/**
 * An error in the place where it happened.
 * @param {string} message
 * @param {(() => void)|null} [retry]
 * @returns {HTMLElement}
 */
export function problem(message, retry) {
  const element = el("div", { className: "problem", role: "alert" }, icon("warning"), el("p", {}, message));
  if (retry) {
    const button = el("button", { type: "button" }, "Retry");
    button.addEventListener("click", retry);
    element.append(button);
  }
  return element;
}

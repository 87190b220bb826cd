/** The box a message is written in, and its one button: send, or stop while the agent answers. */

import { byId } from "./dom.js";

const FINE_POINTER = matchMedia("(pointer: fine)");
const NOTICE =
  "Temporary chat: nothing is remembered from it or recalled in it. It stays in your list until you delete it.";
const GROWS = CSS.supports("field-sizing", "content");

/** What is typed, and whether it can be sent. */
export class Composer {
  #text = byId("text");
  #send = byId("send");
  #stop = byId("stop");
  #busy = false;
  #onSend;

  /**
   * @param {object} handlers
   * @param {(text: string) => void} handlers.onSend
   * @param {() => void} handlers.onStop
   */
  constructor({ onSend, onStop }) {
    this.#onSend = onSend;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#text.addEventListener("keydown", (event) => this.#key(event));
    this.#text.addEventListener("input", () => this.#update());
    this.#stop.addEventListener("click", () => {
      this.#stop.disabled = true;
      this.focus();
      onStop();
    });
  }

  /** Puts the caret into the box, but opens no on-screen keyboard. */
  focus() {
    if (FINE_POINTER.matches) this.#text.focus();
  }

  /**
   * Gives a text back that was not sent, before what was typed since.
   * @param {string} text
   */
  restore(text) {
    this.#text.value = [text, this.#text.value].filter(Boolean).join("\n");
    this.#update();
  }

  /** The message is on its way; there is nothing to stop yet. */
  sending() {
    this.#show({ busy: true, stoppable: false });
  }

  /** The agent answers. */
  running() {
    this.#show({ busy: true, stoppable: true });
  }

  idle() {
    this.#show({ busy: false, stoppable: false });
  }

  #show({ busy, stoppable }) {
    this.#busy = busy;
    this.#send.hidden = busy;
    this.#stop.hidden = !busy;
    this.#stop.disabled = !stoppable;
    this.#update();
  }

  /** While an input method composes a word, Enter belongs to it (229 is Safari's way to say so). */
  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.#text.value.trim();
    if (!text || this.#busy) return;
    this.#text.value = "";
    this.#update();
    this.#onSend(text);
  }

  #update() {
    this.#send.disabled = !this.#text.value.trim();
    if (!GROWS) this.#text.rows = Math.min(8, this.#text.value.split("\n").length);
  }
}

/** The switch of a new chat of which nothing is to be remembered. It is fixed by the first message. */
export class Temporary {
  #button = byId("temporary");
  #hint = byId("hint");
  #usual = this.#hint.textContent;
  on = false;

  constructor() {
    this.#button.addEventListener("click", () => this.show(!this.on, false));
  }

  /** @param {boolean} on @param {boolean} fixed there are messages */
  show(on, fixed) {
    this.on = on;
    this.#button.setAttribute("aria-pressed", String(on));
    this.#button.disabled = fixed;
    this.#button.hidden = fixed && !on;
    byId("main").classList.toggle("temporary", on);
    const said = on ? NOTICE : this.#usual;
    if (this.#hint.textContent !== said) this.#hint.textContent = said;
  }
}

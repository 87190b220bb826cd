/**
 * The reader's key, for a server that asks for one: entered in a dialog, kept for this tab alone, sent
 * with every call. The page loads this module only then.
 */

import { byId, el, style } from "./dom.js";

await style("dialog.css");

const NAME = "threadkeep key";
let key = sessionStorage.getItem(NAME);
let entering = null; // while the dialog is open
if (key) offerToSignOut();

/**
 * As fetch, with the key; asks for another one as long as the server refuses it.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function send(path, options = {}) {
  for (;;) {
    const used = key;
    if (used) {
      const headers = new Headers(options.headers);
      headers.set("Authorization", `Bearer ${used}`);
      const response = await fetch(path, { ...options, headers });
      if (response.status !== 401) return response;
    }
    if (used === key) await enter(used !== null);
  }
}

/** As EventSource, which can't send a key; it doesn't come back by itself. */
export class Source {
  readyState = EventSource.CONNECTING;
  onmessage = null;
  onerror = null;
  #stop = new AbortController();

  /** @param {string} path */
  constructor(path) {
    this.#read(path).catch(() => this.#lost());
  }

  close() {
    this.readyState = EventSource.CLOSED;
    this.#stop.abort();
  }

  async #read(path) {
    const response = await send(path, { signal: this.#stop.signal });
    if (response.status !== 200) return this.#lost();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return this.#lost();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (this.readyState === EventSource.CLOSED) return;
        if (line.startsWith("data: ")) this.onmessage({ data: line.slice(6) });
      }
    }
  }

  #lost() {
    if (this.readyState === EventSource.CLOSED) return;
    this.readyState = EventSource.CLOSED;
    this.onerror();
  }
}

/** Asks for a key, once for all that wait for it. */
function enter(refused) {
  entering ??= new Promise((done) => openDialog(refused, done)).finally(() => {
    entering = null;
  });
  return entering;
}

function openDialog(refused, done) {
  const input = el("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const error = el("p", { className: "error", role: "alert" }, refused ? "The server doesn’t know this key." : "");
  const form = el(
    "form",
    {},
    el("h2", { id: "key-title" }, "Sign in"),
    el("p", {}, el("label", { htmlFor: "key" }, "Your key for this server. It is kept until you close this tab.")),
    input,
    error,
    el("div", { className: "buttons" }, el("button", { type: "submit" }, "Sign in")),
  );
  const dialog = el("dialog", { id: "key-dialog", "aria-labelledby": "key-title" }, form);
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = input.value.trim();
    if (!/^[!-~]+$/.test(given)) {
      error.textContent = "This is no key.";
      return;
    }
    key = given;
    sessionStorage.setItem(NAME, key);
    offerToSignOut();
    dialog.remove();
    done();
  });
  document.body.append(dialog);
  dialog.showModal();
}

function offerToSignOut() {
  if (document.getElementById("sign-out")) return;
  const button = el("button", { type: "button", id: "sign-out", className: "new" }, "Sign out");
  button.addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    location.replace("./"); // nothing of what was shown stays
  });
  byId("sidebar").append(button);
}

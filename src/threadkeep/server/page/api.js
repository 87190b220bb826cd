/** The server's HTTP API, and a run's events as they come. Paths are relative: a proxy may add a prefix. */

let keys = sessionStorage.getItem("threadkeep key") ? await import("./key.js") : null;

/** What the server (or the way to it) answered instead of a result. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status, 0 when the server was not reached
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * @param {string} [after] the id of the last session known
 * @returns {Promise<{data: object[], has_more: boolean}>}
 */
export function listSessions(after) {
  return call(`sessions?${query({ limit: 30, after })}`);
}

/**
 * @param {string} id
 * @returns {Promise<object>}
 */
export function getSession(id) {
  return call(`sessions/${encodeURIComponent(id)}`);
}

/**
 * @param {string} id
 * @returns {Promise<object>}
 */
export function deleteSession(id) {
  return call(`sessions/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * The items of a session, newest first.
 * @param {string} id
 * @param {number} [after] the smallest `seq` known
 * @returns {Promise<{data: object[], has_more: boolean}>}
 */
export function listItems(id, after) {
  const options = query({ order: "desc", limit: 50, html: true, after });
  return call(`sessions/${encodeURIComponent(id)}/items?${options}`);
}

/**
 * Starts a run that goes on whatever becomes of this page.
 * @param {string} text
 * @param {string|null} sessionId null begins a new session
 * @param {string} key tells a repeat of this message from a new one
 * @param {boolean} temporary nothing of it is to be remembered
 * @returns {Promise<{id: string, custom_outputs: {session_id: string}}>}
 */
export function send(text, sessionId, key, temporary) {
  const custom_inputs = { session_id: sessionId ?? undefined, temporary: temporary || undefined };
  const body = { input: [{ role: "user", content: text }], background: true, custom_inputs };
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  return call("responses", { method: "POST", headers, body: JSON.stringify(body) });
}

/**
 * @param {string} id of a response
 * @returns {Promise<{status: string}>}
 */
export function getResponse(id) {
  return call(`responses/${encodeURIComponent(id)}`);
}

/**
 * @param {string} id of a response
 * @returns {Promise<{status: string}>}
 */
export function cancelResponse(id) {
  return call(`responses/${encodeURIComponent(id)}/cancel`, { method: "POST" });
}

/**
 * The tool calls of a session that wait for a decision.
 * @param {string} sessionId
 * @returns {Promise<{data: object[]}>}
 */
export function listPending(sessionId) {
  return call(`approvals?${query({ status: "pending", session_id: sessionId, limit: 100 })}`);
}

/**
 * Whether the server can answer; `message` says what it waits for.
 * @returns {Promise<{ready: boolean, loading: boolean, message: string}>}
 */
export async function readiness() {
  try {
    const response = await fetch("ready");
    const body = await response.json().catch(() => ({}));
    const message = body.message ?? body.error?.message ?? "";
    return { ready: response.ok, loading: body.status === "loading", message };
  } catch {
    return { ready: false, loading: false, message: "The server can’t be reached." };
  }
}

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== undefined);
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
}

/**
 * One call of the API.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<object>} its result
 */
export async function call(path, options) {
  let response;
  try {
    response = await ask(path, options);
  } catch {
    throw new ApiError(0, "The server can’t be reached.");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new ApiError(response.status, body?.error?.message ?? `The server answered ${response.status}.`);
}

/**
 * As fetch. A server that takes keys asks for one; only then there is more to load.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, options) {
  if (!keys) {
    const response = await fetch(path, options);
    if (!response.headers.has("WWW-Authenticate")) return response;
    keys = await import("./key.js");
  }
  return keys.send(path, options);
}

const LAST = new Set([
  "response.completed",
  "response.failed",
  "response.incomplete",
  "response.cancelled",
]);
const RUNNING = new Set(["queued", "in_progress"]);
const LONGEST_PAUSE = 10_000;

/** Follows one run from its first event to its last, over lost connections and restarts. */
export class Follower {
  #id;
  #handlers;
  #last = -1;
  #pause = 500;
  #source = null;
  #timer = 0;
  #closed = false;
  #over = false; // the run's last event came; only the end of the stream is missing

  /**
   * @param {string} id of the response
   * @param {object} handlers
   * @param {(event: object) => void} handlers.onEvent
   * @param {(lost: boolean) => void} handlers.onConnection
   * @param {(error: ApiError|null) => void} handlers.onGap the run is over, its last events were missed
   */
  constructor(id, handlers) {
    this.#id = id;
    this.#handlers = handlers;
    this.#open();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#source?.close();
  }

  #open() {
    const after = this.#last < 0 ? undefined : this.#last;
    const options = query({ stream: true, html: true, starting_after: after });
    this.#source = new (keys?.Source ?? EventSource)(`responses/${encodeURIComponent(this.#id)}?${options}`);
    this.#source.onmessage = (message) => this.#take(message.data);
    this.#source.onerror = () => this.#lost();
  }

  #take(data) {
    if (data === "[DONE]") return this.close();
    const event = JSON.parse(data);
    if (event.sequence_number <= this.#last) return;
    this.#last = event.sequence_number;
    this.#pause = 500;
    this.#handlers.onConnection(false);
    this.#over = LAST.has(event.type);
    this.#handlers.onEvent(event);
  }

  /** EventSource comes back by itself after a cut, but gives up on any status other than 200. */
  #lost() {
    if (this.#over) return this.close();
    this.#handlers.onConnection(true);
    if (this.#source.readyState !== EventSource.CLOSED) return;
    this.#timer = setTimeout(() => this.#check(), this.#pause);
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
  }

  async #check() {
    try {
      const { status } = await getResponse(this.#id);
      if (this.#closed) return;
      if (RUNNING.has(status)) this.#open();
      else this.#end(null);
    } catch (error) {
      if (this.#closed) return;
      if (error.status === 404) this.#end(error);
      else this.#lost();
    }
  }

  #end(error) {
    this.close();
    this.#handlers.onGap(error);
  }
}

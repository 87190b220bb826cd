/** A question before something is deleted for good. Loaded when somebody is about to do so. */

import { el, style } from "./dom.js";

await style("dialog.css");

/**
 * Asks first; the dialog stays open and says why when `action` fails.
 * @param {object} question
 * @param {string} question.title
 * @param {string} question.text what will be gone
 * @param {() => Promise<object>} question.action what is gone already (404) is deleted too
 * @param {() => void} question.done it was deleted
 * @param {() => void} question.back it was not
 */
export function confirmDelete({ title, text, action, done, back }) {
  let deleted = false;
  const error = el("p", { className: "error", role: "alert" });
  const keep = el("button", { type: "button" }, "Keep it");
  const confirm = el("button", { type: "button", className: "danger" }, "Delete");
  const dialog = el(
    "dialog",
    { "aria-labelledby": "confirm-title", "aria-describedby": "confirm-text" },
    el("h2", { id: "confirm-title" }, title),
    el("p", { id: "confirm-text" }, text),
    error,
    el("div", { className: "buttons" }, keep, confirm),
  );
  keep.addEventListener("click", () => dialog.close());
  confirm.addEventListener("click", async () => {
    try {
      await action();
    } catch (failure) {
      if (failure.status !== 404) {
        error.textContent = failure.message;
        return;
      }
    }
    deleted = true;
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (deleted) done();
    else back();
  });
  document.body.append(dialog);
  dialog.showModal();
}

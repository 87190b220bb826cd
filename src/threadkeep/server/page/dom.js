/** The few things every module needs from the document. */

const policy = globalThis.trustedTypes?.createPolicy("threadkeep", {
  // Only blocks that the server has sanitised are ever passed in (see answer.js).
  createHTML: (html) => html,
});

/**
 * Makes an element. Properties whose name has a dash, and `role`, become attributes.
 * @param {string} tag
 * @param {Object<string, unknown>} [properties]
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, String(value));
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/**
 * The element with an id that index.html promises.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/**
 * A drawing of the sprite; it is decoration, the words around it carry the meaning.
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * Loads a style sheet.
 * @param {string} name
 * @returns {Promise<Event>} until it is there, or can't be had
 */
export function style(name) {
  return new Promise((done) => {
    const href = `page/${name}`;
    document.head.append(el("link", { rel: "stylesheet", href, onload: done, onerror: done }));
  });
}

/**
 * Text that only screen readers get.
 * @param {string} text
 * @param {string} [tag]
 * @returns {HTMLElement}
 */
export function unseen(text, tag = "span") {
  return el(tag, { className: "unseen" }, text);
}

/**
 * Shows HTML that the server has sanitised.
 * @param {HTMLElement} element
 * @param {string} html
 */
export function setHTML(element, html) {
  element.innerHTML = policy ? policy.createHTML(html) : html;
}

/**
 * Says something to screen readers, politely.
 * @param {string} text
 */
export function announce(text) {
  byId("status").textContent = text;
}

/**
 * A button that copies a text and says so.
 * @param {string} label what is copied, for the button's name
 * @param {() => string} read
 * @returns {HTMLElement}
 */
export function copyButton(label, read) {
  const word = el("span", {}, "Copy");
  const button = el("button", { type: "button", className: "copy", "aria-label": label }, icon("copy"), word);
  button.addEventListener("click", async () => {
    const done = await copy(read());
    word.textContent = done ? "Copied" : "Not copied";
    button.firstChild?.replaceWith(icon(done ? "check" : "warning"));
    announce(word.textContent);
    setTimeout(() => {
      word.textContent = "Copy";
      button.firstChild?.replaceWith(icon("copy"));
    }, 2000);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP on another host than localhost there is no clipboard object.
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const before = document.activeElement;
  const area = el("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}

/** When a memory holds, in words. */

/**
 * @param {{valid_from: number, valid_to: number|null, updated_at: number}} memory times in seconds
 * @returns {string}
 */
export function times({ valid_from: from, valid_to: to, updated_at: updated }) {
  if (to !== null) return span(from, to);
  const now = Date.now() / 1000;
  if (from > now) return `From ${day(from) === day(now) ? format(true).format(from * 1000) : day(from)}`;
  return `Since ${day(from)}${day(updated) === day(from) ? "" : `, changed ${day(updated)}`}`;
}

/**
 * Two days, or two times of one day.
 * @param {number} from in seconds
 * @param {number} to in seconds
 * @returns {string}
 */
export function span(from, to) {
  return format(day(from) === day(to)).formatRange(from * 1000, to * 1000);
}

/**
 * @param {number} seconds
 * @returns {string}
 */
export function day(seconds) {
  return format(false).format(seconds * 1000);
}

function format(exact) {
  const options = { dateStyle: "medium", ...(exact && { timeStyle: "short" }) };
  return new Intl.DateTimeFormat(document.documentElement.lang, options);
}

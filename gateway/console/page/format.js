/** Numbers, times and sizes as people read them. Pure. */

const number = new Intl.NumberFormat("en-GB");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("sv-SE", { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" });

const UNSEEN = /[\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

export const count = (value) => (value === null || value === undefined ? "–" : number.format(value));

/** A point in time, Unix milliseconds, in the operator's own time zone (`zone`). */
export const time = (ms) => (ms ? day.format(ms) : "–");
export const timeOfDay = (ms) => `${clock.format(ms)}.${String(ms % 1000).padStart(3, "0")}`;
export const dayOf = (ms) => day.format(ms).slice(0, 10);

/** The operator's time zone as it is now: `UTC+01:00 (Europe/Zurich)`. */
export function zone(at = new Date()) {
  const minutes = -at.getTimezoneOffset();
  const two = (value) => String(Math.floor(Math.abs(value))).padStart(2, "0");
  const offset = minutes ? `UTC${minutes < 0 ? "−" : "+"}${two(minutes / 60)}:${two(minutes % 60)}` : "UTC";
  const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
  return !timeZone || timeZone === "UTC" ? offset : `${offset} (${timeZone})`;
}

/** A span of time in its two largest units at most, and no noughts behind a whole number of seconds. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) {
    const places = ms % 1000 === 0 ? 0 : ms < 10_000 ? 2 : 1;
    return `${floored(ms / 1000, places)} s`;
  }
  const seconds = Math.floor(ms / 1000);
  const [large, small, ratio] = seconds < 3600 ? ["min", "s", 60] : seconds < 86_400 ? ["h", "min", 60] : ["d", "h", 24];
  const smalls = Math.floor(seconds / { s: 1, min: 60, h: 3600 }[small]);
  return `${Math.floor(smalls / ratio)} ${large}${smalls % ratio ? ` ${smalls % ratio} ${small}` : ""}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  while (value >= 1024 && index < units.length - 1) {
    value /= 1024;
    index += 1;
  }
  return `${index ? value.toFixed(1) : value} ${units[index]}`;
}

/** A share of 1 in percent, never rounded up to a whole that it is not. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share === 1) return "100 %";
  const places = share > 0.99 ? 3 : 1;
  return `${floored(share * 100, places)} %`;
}

/** Cut off behind so many places, not rounded up; but what is only a double's error below a number is that number. */
const floored = (value, places) => (Math.floor(value * 10 ** places + 1e-6) / 10 ** places).toFixed(places);

export const perSecond = (value) => (value === null ? "–" : value >= 100 ? count(Math.round(value)) : value.toFixed(1));

/** A span on an axis, with no more places than it needs. */
export const spanOnAxis = (ms) => span(ms).replace(/(\.\d)0 s$/, "$1 s");

/** A value on an axis, with no more places than it needs. */
export const onAxis = (value) => count(Math.round(value * 100) / 100);

/** A word of the API as people write it: `not_acking` -> `not acking`. */
export const words = (name) => name.replaceAll("_", " ");

/** A sentence out of words of the API: `it was trimmed` -> `It was trimmed.` */
export const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;

/** What an event holds, as JSON. What can not be seen, or turns the order of the letters around, is written as its number. */
export const json = (value) => JSON.stringify(value, null, 2).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

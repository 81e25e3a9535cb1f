/** Numbers, times and sizes as people read them. Pure. */

const number = new Intl.NumberFormat("en-GB");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("sv-SE", { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const count = (value) => (value === null || value === undefined ? "–" : number.format(value));

/** A point in time, Unix milliseconds, in the operator's own time zone. */
export const time = (ms) => (ms ? day.format(ms) : "–");
export const timeOfDay = (ms) => `${clock.format(ms)}.${String(ms % 1000).padStart(3, "0")}`;

/** A span of time in its two largest units at most. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
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
  return share === 1 ? "100 %" : `${(Math.floor(share * 100_000) / 1000).toFixed(share > 0.99 ? 3 : 1)} %`;
}

export const perSecond = (value) => (value === null ? "–" : value >= 100 ? count(Math.round(value)) : value.toFixed(1));

/** A word of the API as people write it: `not_acking` -> `not acking`. */
export const words = (name) => name.replaceAll("_", " ");

/** The admin API: asked with the operator's token, which lives in this tab alone. */

const TOKEN = "eventbus-console-token";

/** The API refused, or did not answer. */
export class ApiError extends Error {
  constructor(title, message, { status = 0, code = "", body } = {}) {
    super(message);
    this.title = title;
    this.status = status;
    this.code = code;
    this.body = body;
  }
}

const TITLES = { 401: "The token is not good.", 403: "Not allowed.", 404: "Not found.", 409: "Something has changed.", 429: "Too much at a time.", 503: "Redis does not answer." };

let signedOut = () => {};

/** Called with what the API says when the token is missing, expired or revoked. */
export function onSignedOut(handler) {
  signedOut = handler;
}

export const token = () => sessionStorage.getItem(TOKEN);
export const remember = (value) => sessionStorage.setItem(TOKEN, value);
export const forget = () => sessionStorage.removeItem(TOKEN);

/** What a token says of itself, to be shown; whether it is true is for the node to judge. */
export function claims() {
  try {
    const [, part] = token().split(".");
    const bytes = Uint8Array.from(atob(part.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
    const { sub, exp } = JSON.parse(new TextDecoder().decode(bytes));
    return { user: typeof sub === "string" ? sub : undefined, untilMs: Number.isFinite(exp) ? exp * 1000 : undefined };
  } catch {
    return {};
  }
}

export async function request(path, { query = {}, body, signal } = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""));
  const headers = { Authorization: `Bearer ${token() ?? ""}` };
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`/admin/v1/${path}${words.size ? `?${words}` : ""}`, {
      method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal, cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The admin port does not answer.", "Is the node running, and this machine connected to it?");
  }
  return response;
}

async function answered(response) {
  if (response.ok) return response.json();
  const body = await response.json().catch(() => ({}));
  const { code = "", message = `status ${response.status}` } = body.error ?? {};
  const error = new ApiError(TITLES[response.status] ?? "That did not work.", message, { status: response.status, code, body });
  if (response.status === 401 || (response.status === 403 && code !== "not_confirmed")) signedOut(error);
  throw error;
}

/** `get("pending", {user, cursor})`: what the API answers. Throws ApiError. */
export const get = async (path, query, signal) => answered(await request(path, { query, signal }));

/** An action; without `confirm` its plan. Throws ApiError. */
export const act = async (asked) => answered(await request("actions", { body: asked }));

/** The feed's response. Throws ApiError. */
export async function openFeed(signal) {
  const response = await request("live", { signal });
  return response.ok ? response : answered(response);
}

export const path = (...parts) => parts.map(encodeURIComponent).join("/");

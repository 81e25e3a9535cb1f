/** The page's own server, and what the page says when something goes wrong. */

const controlToken = document.querySelector('meta[name="control-token"]').content;

export const $ = (id) => document.getElementById(id);

export async function api(path, { method = "GET", body } = {}) {
  const response = await fetch(path, { method, body, headers: { "x-demo-token": controlToken } });
  const answer = await response.json();
  if (response.ok) return answer;
  if (answer.error.code === "wrong_token") reloadOnce();
  throw new Error(answer.error.message);
}

/** The demo was started anew: this page belongs to the one before. Not more than once a while. */
function reloadOnce() {
  const last = Number(sessionStorage.getItem("reloaded") ?? 0);
  if (Date.now() - last < 10_000) return;
  sessionStorage.setItem("reloaded", String(Date.now()));
  location.reload();
}

export function say(problem) {
  $("alert").textContent = problem ?? "";
  $("alert").hidden = !problem;
}

/** Does what a button asks for, with the button out of use meanwhile; what goes wrong is shown. */
export async function busy(button, action) {
  button.disabled = true;
  try {
    say();
    await action();
  } catch (error) {
    say(error instanceof TypeError ? "The demo does not answer: is it still running?" : error.message);
  } finally {
    button.disabled = false;
  }
}

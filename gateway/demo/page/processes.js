/** The boxes above: the agent, the store, the nodes, each with the buttons that kill and revive it. */

import { $, api, busy } from "./api.js";
import { element } from "./steps.js";

/** `state` is an answer of /demo/state, `node` the name of the node that serves this tab, `changed` is called after a button. */
export function showProcesses(state, node, changed) {
  const { agent, server } = state;
  $("agent-state").textContent = processText(agent);
  const kill = $("kill-agent");
  kill.hidden = agent.state === "ended";
  kill.title = `kill -9 ${agent.pid}`;
  kill.setAttribute("aria-label", `Kill the agent, pid ${agent.pid}, with SIGKILL`);
  kill.onclick = () => act(kill, "/demo/agent/kill", changed);
  $("server-name").textContent = server.name;
  $("server-state").textContent = processText(server);
  for (const each of state.nodes) showNode(each, node, changed);
}

function processText({ pid, state }) {
  return state === "ended" ? "being started again" : `pid ${pid}`;
}

async function act(button, path, changed) {
  await busy(button, () => api(path, { method: "POST" }));
  changed();
}

function showNode({ name, pid, port, state, ended }, serving, changed) {
  const box = document.querySelector(`[data-node="${CSS.escape(name)}"]`) ?? makeNode(name, changed);
  const texts = { starting: "starting…", ready: `pid ${pid}, port ${port}`, not_ready: `pid ${pid}, not ready` };
  const up = state !== "ended";
  const mine = up && name === serving;
  box.className = `node ${state} ${mine ? "serves" : ""}`;
  box.querySelector(".state").textContent = texts[state] ?? (pid ? `pid ${pid}` : "");
  box.querySelector(".serving").textContent = up ? (mine ? "serves this tab" : "") : ended;
  const button = box.querySelector("button");
  button.textContent = up ? "Kill" : "Revive";
  button.className = up ? "kill" : "revive";
  button.title = up ? `kill -9 ${pid}` : "start it again";
  button.setAttribute("aria-label", up ? `Kill ${name}, pid ${pid}, with SIGKILL` : `Revive ${name}`);
  button.dataset.action = up ? "kill" : "revive";
}

function makeNode(name, changed) {
  const button = element("button", "");
  button.type = "button";
  button.onclick = () => act(button, `/demo/nodes/${name}/${button.dataset.action}`, changed);
  const box = element("li", "node", element("h3", "", name), element("p", "state"), element("p", "serving"), button);
  box.dataset.node = name;
  $("nodes").append(box);
  return box;
}

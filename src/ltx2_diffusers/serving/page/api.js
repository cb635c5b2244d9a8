// Calls of the server, with the key of this tab.
import { byId, show } from "./dom.js";

const KEY = "ltx2-key";

/** What the server said no with. `details` is a list of places and reasons. */
export class Refused extends Error {
  constructor(status, details, retryAfter) {
    super(details.map((one) => one.msg).join("; "));
    this.status = status;
    this.details = details;
    this.retryAfter = retryAfter;
  }
}

let asking = null;

/** Ask for a key, once however many calls want one. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    show(byId("key-refused"), sessionStorage.getItem(KEY) !== null);
    byId("key").value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(KEY, byId("key").value.trim());
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

async function refusal(answer) {
  let detail = `the server answered ${answer.status}`;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch {
    // What stands between the page and the server may answer, too.
  }
  const details = Array.isArray(detail) ? detail : [{ loc: [], msg: String(detail) }];
  return new Refused(answer.status, details, answer.headers.get("retry-after"));
}

/** The answer to a request; rejects with `Refused`, or with `TypeError` where there is no server. */
export async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) {
      // Another call may have asked meanwhile.
      if (sessionStorage.getItem(KEY) === key) await askForKey();
      continue;
    }
    show(byId("forget-key"), key !== null);
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }
}

export const told = async (path, options) => (await request(path, options)).json();

export const post = (path, body) =>
  told(path, {
    method: "POST",
    ...(body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
  });

/** Server-sent events of a job, as [kind, content], until the server ends them. */
export async function* events(id, signal) {
  const answer = await request(`/v1/videos/${id}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").map((line) => [line.slice(0, line.indexOf(": ")), line.slice(line.indexOf(": ") + 2)]);
      const { event, data } = Object.fromEntries(lines);
      if (data !== undefined) yield [event, JSON.parse(data)];
    }
  }
}

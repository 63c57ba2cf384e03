// The service's HTTP API, with the admin key where one is needed. The key is in this tab's session storage and in the
// Authorization header: never in a URL, never in a cookie.

const KEY = "pointsman-admin-key";
export const needsKey = document.documentElement.dataset.key === "required";
export const keyOf = () => sessionStorage.getItem(KEY);
export const keep = (key) => sessionStorage.setItem(KEY, key);
export const forget = () => sessionStorage.removeItem(KEY);

const SILENT_MS = 5000;
const WAITS_MS = [500, 1000, 2000, 4000];

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `status ${status}`);
    this.status = status;
    this.code = error?.code;
    this.problems = error?.problems ?? [];
  }
}

function headers(more = {}) {
  return needsKey ? { ...more, Authorization: `Bearer ${keyOf() ?? ""}` } : more;
}

/** One request; its JSON. Throws Refused for an error of the service, TypeError where it cannot be reached. */
export async function ask(method, path, body) {
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const more = sent === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, { method, body: sent, headers: headers(more), cache: "no-store" });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.error);
  return answer;
}

/**
 * Listen to `/admin/live` until `signal` aborts, coming back whenever the connection is lost.
 * `on` has `event(name, data)`, `lost()` when it is, and `refused(error)` where a key is wrong: then it ends.
 */
export async function listen(pool, signal, on) {
  const path = `/admin/live${pool ? `?pool=${encodeURIComponent(pool)}` : ""}`;
  let failures = 0;
  while (!signal.aborted) {
    const once = new AbortController();
    const stop = () => once.abort();
    signal.addEventListener("abort", stop);
    try {
      const response = await fetch(path, { headers: headers(), signal: once.signal, cache: "no-store" });
      if (!response.ok) throw new Refused(response.status, (await response.json().catch(() => ({}))).error);
      await events(response.body, once, (name, data) => {
        failures = 0;
        try {
          on.event(name, data);
        } catch (error) {
          reportError(error); // a fault of the page is no fault of the connection
        }
      });
    } catch (error) {
      if (error instanceof Refused && [401, 403, 404].includes(error.status)) {
        signal.removeEventListener("abort", stop);
        if (!signal.aborted) on.refused(error);
        return;
      }
    }
    signal.removeEventListener("abort", stop);
    if (signal.aborted) return;
    on.lost();
    await new Promise((resume) => setTimeout(resume, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]));
  }
}

/** Server-sent events of a body. The service says something every second: silence means that it is gone. */
async function events(body, once, tell) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const watch = setTimeout(() => once.abort(), SILENT_MS);
    const { done, value } = await reader.read().finally(() => clearTimeout(watch));
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) tell(field("event") ?? "message", JSON.parse(field("data")));
    }
  }
}

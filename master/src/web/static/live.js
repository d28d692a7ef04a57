// Follows a job's log; reloads pages of what has not ended. Output is only ever set as text.
"use strict";

const log = document.getElementById("log");
if (log) {
  // The page keeps the last part of a long log; the raw link has all of it.
  const MOST = 4_000_000;
  // After the master refused, as when too many logs are open; otherwise the browser tries again by itself.
  const REFUSED_PAUSE = 10_000;
  const connection = document.getElementById("connection");
  const follow = document.getElementById("follow");
  const decoder = new TextDecoder("utf-8");
  // Colours and cursor moves of terminals.
  const escapes = /\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;
  // Characters that hide or reorder what stands around them are written out, as the pages do.
  const treacherous = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
  const written = (char) => `⟨U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  let waiting = "";
  let scheduled = false;
  let next = 0;

  const show = () => {
    scheduled = false;
    // An escape sequence may be cut by the end of an event: its start waits for the rest.
    const cut = waiting.lastIndexOf("\x1b");
    const whole = cut >= 0 && waiting.length - cut < 32 && !escapes.test(waiting.slice(cut)) ? cut : waiting.length;
    escapes.lastIndex = 0;
    const text = waiting.slice(0, whole).replace(escapes, "").replace(/\r\n/g, "\n").replace(treacherous, written);
    waiting = waiting.slice(whole);
    log.append(text);
    if (log.textContent.length > MOST) log.textContent = log.textContent.slice(-MOST / 2);
    if (follow.checked) log.scrollTop = log.scrollHeight;
  };

  const output = (event) => {
    next = event.lastEventId;
    const bytes = Uint8Array.from(atob(event.data), (char) => char.charCodeAt(0));
    waiting += decoder.decode(bytes, { stream: true });
    if (!scheduled) {
      scheduled = true;
      requestAnimationFrame(show);
    }
  };

  const connect = () => {
    const events = new EventSource(`/api/jobs/${log.dataset.job}/log/stream?from=${next}`);
    events.addEventListener("output", output);
    events.addEventListener("end", () => {
      events.close();
      connection.textContent = "";
      document.documentElement.dataset.log = "complete";
      if (document.querySelector(".badge.running, .badge.queued")) setTimeout(() => location.reload(), 500);
    });
    events.onopen = () => { connection.textContent = "live"; };
    events.onerror = () => {
      connection.textContent = "connecting again…";
      if (events.readyState === EventSource.CLOSED) setTimeout(connect, REFUSED_PAUSE);
    };
  };
  connect();
} else if (document.querySelector("[data-state=running], [data-state=preparing]")) {
  setTimeout(() => location.reload(), 3000);
}

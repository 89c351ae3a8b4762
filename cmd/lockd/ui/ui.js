// Keeps the page fresh: the server renders it anew when there are events, and now and then for the
// ages. Without this script a reload does the same. URLs begin with the origin, since the page's own may
// have a password in it, with which nothing can be fetched.
"use strict";
(() => {
  const main = document.querySelector("main[data-prefix]");
  if (!main) return;
  const status = document.getElementById("status");
  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  let timer = 0, due = Infinity, cost = 0, busy = false;

  function soon(ms) {
    const at = performance.now() + Math.max(ms, 5 * cost);
    if (busy || at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(refresh, at - performance.now());
  }

  async function refresh() {
    const live = document.getElementById("live");
    const selected = getSelection();
    const begun = performance.now();
    busy = true;
    try {
      if (document.hidden || !selected.isCollapsed && live.contains(selected.anchorNode)) return;
      const answer = await fetch(location.origin + location.pathname + location.search, { headers: { Accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      if (!answer.ok || !fresh) throw new Error(answer.status);
      const focus = live.contains(document.activeElement) ? document.activeElement : null;
      const same = focus && [...fresh.querySelectorAll("a, [tabindex]")].find((e) =>
        focus.href ? e.href === focus.href : e.ariaLabel === focus.ariaLabel);
      const left = Object.fromEntries([...live.querySelectorAll(".scroll")].map((e) => [e.ariaLabel, e.scrollLeft]));
      live.replaceWith(fresh);
      for (const e of fresh.querySelectorAll(".scroll")) e.scrollLeft = left[e.ariaLabel] ?? 0;
      same?.focus({ preventScroll: true });
    } catch (err) {
      say("Not live: the service does not answer");
    } finally {
      cost = performance.now() - begun;
      busy = false;
      due = Infinity;
      soon(5000);
    }
  }

  const events = new EventSource(location.origin + "/v1/events?prefix=" + encodeURIComponent(main.dataset.prefix));
  events.onopen = () => { say("Live"); soon(0); };
  events.onerror = () => say("Not live: the stream of events broke off");
  for (const kind of ["waiting", "granted", "released", "forced", "lost", "expired", "gone", "left", "missed"]) {
    events.addEventListener(kind, () => soon(500));
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(0) });
})();

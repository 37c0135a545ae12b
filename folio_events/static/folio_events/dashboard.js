// Fetches what changes of the dashboard every few seconds while somebody looks at it. Without
// it the page is the same, and as old as its last load.
"use strict";
{
  const INTERVAL = 5000;

  function start() {
    const board = document.getElementById("folio-events-dashboard");
    const bar = document.getElementById("folio-events-refresh");
    if (!board || !bar) return;
    const wanted = bar.querySelector("input");
    const said = bar.querySelector("[role=status]");
    let isBusy = false;
    let last = at();
    bar.hidden = false;

    function at() {
      return board.querySelector("[data-at]").dataset.at;
    }

    function replace(text) {
      const open = [...board.querySelectorAll("details[open][id]")].map((one) => one.id);
      const focused = document.activeElement;
      const place = board.contains(focused)
        ? [...board.querySelectorAll("a, summary")].indexOf(focused)
        : -1;
      board.innerHTML = text;
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      if (place >= 0) board.querySelectorAll("a, summary")[place]?.focus({ preventScroll: true });
    }

    async function refresh() {
      if (!wanted.checked || document.hidden || isBusy) return;
      isBusy = true;
      try {
        const answer = await fetch("?part=1", { credentials: "same-origin" });
        // Who is logged out is sent to the login page.
        if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
        replace(await answer.text());
        last = at();
        said.textContent = last;
      } catch {
        said.textContent = `${said.dataset.failed} ${last}`;
      }
      isBusy = false;
    }

    said.textContent = last;
    window.setInterval(refresh, INTERVAL);
    document.addEventListener("visibilitychange", refresh);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
}

// The dashboard's one script. Rules: nothing is ever parsed as HTML (rows are clones of a <template>, filled with textContent); every
// page works without it; keys are ignored while somebody types.
"use strict";

const queue = document.querySelector("table.queue");
const rows = () => (queue ? [...queue.tBodies[0].rows] : []);
const linkOf = (row) => row.querySelector("a");

// ---- keyboard: j and k walk the queue, Enter opens (the link has the focus), u goes up, / searches, ? explains
const typing = (target) => target.closest("input, textarea, select, dialog") !== null;

function walk(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.contains(document.activeElement));
  const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
  linkOf(next).focus();
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const help = document.getElementById("keys");
  const keys = {
    j: () => walk(1),
    k: () => walk(-1),
    u: () => document.querySelector("a[data-up]")?.click(),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    "?": () => help?.showModal(),
  };
  const act = keys[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
document.getElementById("show-keys")?.addEventListener("click", () => document.getElementById("keys").showModal());

queue?.addEventListener("click", (event) => {
  if (event.target.closest("a, button")) return;
  const row = event.target.closest("tbody tr");
  if (row && !String(getSelection())) linkOf(row).click();
});

// ---- a filter that changes is a filter that applies
for (const field of document.querySelectorAll(".filters select")) field.addEventListener("change", () => field.form.requestSubmit());

// ---- live: ask every few seconds, change only what changed, never move the focus
const live = document.querySelector("[data-live]");

function fill(row, said) {
  let changed = false;
  for (const cell of row.querySelectorAll("[data-field]")) {
    const text = said[cell.dataset.field] ?? "";
    if (cell.textContent !== text) {
      cell.textContent = text;
      changed = true;
    }
  }
  const pill = row.querySelector(".pill");
  pill.className = "pill " + said.state;
  const gauge = row.querySelector(".gauge");
  gauge.setAttribute("class", "gauge " + said.state);
  gauge.querySelectorAll(".step").forEach((step, i) => step.setAttribute("class", i < said.steps ? "step on" : "step"));
  return changed;
}

function redraw(answer) {
  const body = queue?.tBodies[0];
  const pattern = document.getElementById("row");
  if (!body || !pattern) {
    if (answer.rows.length) location.reload();
    return;
  }
  const known = new Map(rows().map((row) => [row.dataset.key, row]));
  const wanted = [];
  for (const said of answer.rows) {
    let row = known.get(said.key);
    if (!row) {
      row = pattern.content.firstElementChild.cloneNode(true);
      row.dataset.key = said.key;
      row.classList.add("new");
    }
    linkOf(row).setAttribute("href", said.href);
    fill(row, said);
    wanted.push(row);
    known.delete(said.key);
  }
  const focused = document.activeElement;
  for (const row of known.values()) if (!row.contains(focused)) row.remove();
  wanted.forEach((row, i) => {
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
  });
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

async function ask() {
  const sign = document.querySelector(".live");
  try {
    const answer = await fetch(live.dataset.live, { headers: { accept: "application/json" }, credentials: "same-origin" });
    if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
    const said = await answer.json();
    if (said.rows) redraw(said);
    for (const [name, text] of Object.entries(said.facts ?? {})) {
      const place = document.querySelector(`[data-fact="${CSS.escape(name)}"]`);
      if (place && place.textContent !== text) place.textContent = text;
    }
    const stale = document.getElementById("stale");
    if (stale && said.mark !== undefined && said.mark !== live.dataset.mark) stale.hidden = false;
    sign?.classList.add("on");
    if (sign) sign.textContent = "live";
  } catch {
    sign?.classList.remove("on");
    if (sign) sign.textContent = "not live: no answer, trying again";
  }
}

if (live) {
  const every = Number(live.dataset.every || 5) * 1000;
  setInterval(() => document.hidden || ask(), every);
  ask();
}

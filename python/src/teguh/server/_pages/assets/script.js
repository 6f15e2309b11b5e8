// Keeps a page up to date: fetches it again every few seconds and changes what is different.
"use strict";

const SECONDS = 5;
const PAUSED = "teguh-paused";
const main = document.getElementById("main");
const button = document.getElementById("live");
const news = document.getElementById("news");
const live = main.hasAttribute("data-live") && button;

let paused = false;
let timer = 0;
let asked = null;

// Changes a tree into another. What the reader has typed, opened, focused and scrolled stays.
function become(old, fresh) {
  // not .attributes: a form has its fields as properties, and one is called that
  for (const name of old.getAttributeNames()) {
    if (!fresh.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
  }
  for (const name of fresh.getAttributeNames()) {
    const value = fresh.getAttribute(name);
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  let mine = old.firstChild;
  for (const node of fresh.childNodes) {
    const kept = counterpart(mine, node);
    if (!kept) {
      old.insertBefore(document.importNode(node, true), mine);
      continue;
    }
    if (!key(node)) while (mine !== kept) mine = removed(mine);
    else if (kept !== mine) old.insertBefore(kept, mine);
    if (node.nodeType === Node.ELEMENT_NODE) become(kept, node);
    else if (kept.data !== node.data) kept.data = node.data;
    mine = kept.nextSibling;
  }
  while (mine) mine = removed(mine);
}

// What a node is among those left of the old ones: that of its key; without one, the next of its kind.
function counterpart(from, node) {
  const name = key(node);
  if (!name && node.nodeType !== Node.ELEMENT_NODE) return from && from.nodeType === node.nodeType ? from : null;
  for (let one = from; one; one = one.nextSibling) {
    if (one.nodeName === node.nodeName && key(one) === name && (name || one.className === node.className)) return one;
    if (!name && key(one)) return null;
  }
  return null;
}

function key(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.id || node.getAttribute("aria-labelledby") || "" : "";
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function say(text) {
  if (news.textContent !== text) news.textContent = text;
  document.body.classList.toggle("stale", text !== "");
}

async function refresh() {
  const asking = asked = new AbortController();
  const limit = setTimeout(() => asking.abort(), 10000);
  let answer, text;
  try {
    answer = await fetch(location.href, {signal: asking.signal, cache: "no-store"});
    text = await answer.text();
  } catch {
    if (!paused && !document.hidden) say("The service does not answer; trying again.");
    return;
  } finally {
    clearTimeout(limit);
  }
  if (paused || document.hidden) return;
  if (answer.redirected) return location.reload();
  const page = new DOMParser().parseFromString(text, "text/html");
  const fresh = page.getElementById("main");
  if (answer.status >= 500 || !fresh) {
    say(`${page.title.split(" · ")[0] || "The service has trouble"}; trying again.`);
  } else {
    become(main, fresh);
    document.title = page.title;
    say("");
  }
}

function schedule() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  timer = setTimeout(async () => {
    await refresh();
    schedule();
  }, SECONDS * 1000);
}

function pause(yes) {
  paused = yes;
  button.setAttribute("aria-pressed", String(yes));
  try { sessionStorage.setItem(PAUSED, yes ? "yes" : ""); } catch { /* it is not kept */ }
  if (yes) {
    asked?.abort();
    say("");
  }
  schedule();
}

if (live) {
  // What an action did is said once.
  const address = new URL(location.href);
  if (address.searchParams.has("done")) {
    address.searchParams.delete("done");
    address.searchParams.delete("n");
    history.replaceState(null, "", address);
  }
  button.hidden = false;
  button.title = `This page is loaded again every ${SECONDS} seconds`;
  button.addEventListener("click", () => pause(!paused));
  document.addEventListener("visibilitychange", async () => {
    if (!document.hidden && !paused) await refresh();
    schedule();
  });
  let kept = "";
  try { kept = sessionStorage.getItem(PAUSED); } catch { /* there is none */ }
  pause(kept === "yes");
}

"use strict";
// Blinded votes on pairs: by buttons or keys, kept in this browser, saved as a file. The names of a pair's sides are in
// its attributes and become text when it is voted on. Uses the players of page.js.

const KEYS = { a: "left", 1: "left", s: "same", 2: "same", d: "right", 3: "right" };
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const pairs = [...document.querySelectorAll("[data-pair]")];
const ofBallot = (name) => document.querySelector(`.ballot [data-part="${name}"]`);
const inPair = (pair, name) => pair.querySelector(`[data-part="${name}"]`);

// What this browser keeps; a page that may not keep anything still works until it is closed.
const kept = {
  memory: new Map(),
  read(name) {
    if (this.memory.has(name)) return this.memory.get(name);
    try {
      return localStorage.getItem(`s2video-${name}`);
    } catch {
      return null;
    }
  },
  write(name, text) {
    this.memory.set(name, text);
    try {
      if (text === null) localStorage.removeItem(`s2video-${name}`);
      else localStorage.setItem(`s2video-${name}`, text);
    } catch {
      warn("This browser keeps no votes. Save them before you close the page.");
    }
  },
};

function warn(text) {
  ofBallot("problem").textContent = text;
  ofBallot("problem").hidden = false;
}

// { choice, blind }, or null. What is kept may be from anything that ran at this address.
function voteOn(pair) {
  try {
    const vote = JSON.parse(kept.read(`vote-${pair.dataset.pair}`));
    return vote && Object.values(KEYS).includes(vote.choice) ? vote : null;
  } catch {
    return null;
  }
}

function isSeen(pair) {
  return kept.read(`seen-${pair.dataset.pair}`) === "yes";
}

function vote(pair, choice) {
  if (voteOn(pair)) return;
  kept.write(`vote-${pair.dataset.pair}`, JSON.stringify({ choice, blind: !isSeen(pair) }));
  kept.write(`seen-${pair.dataset.pair}`, "yes");
  show(pair);
  goOn(pair);
}

function takeBack(pair) {
  kept.write(`vote-${pair.dataset.pair}`, null); // what was seen stays seen
  show(pair);
}

// To the next pair without a vote, after this one or from the start.
function goOn(from) {
  const at = pairs.indexOf(from);
  const next = [...pairs.slice(at + 1), ...pairs.slice(0, at)].find((pair) => !voteOn(pair));
  press(from, "Pause");
  if (!next) return ofBallot("save").focus();
  next.querySelector("[data-player]")?.focus({ preventScroll: true });
  next.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
  if (!calm) press(next, "Play");
}

function press(pair, title) {
  const button = inPair(pair, "play");
  if (button?.title === title) button.click();
}

function show(pair) {
  const given = voteOn(pair);
  pair.toggleAttribute("data-voted", given !== null);
  for (const button of pair.querySelectorAll("[data-choice]")) {
    button.setAttribute("aria-pressed", given?.choice === button.dataset.choice);
    button.disabled = given !== null;
  }
  const names = given ? [pair.dataset.left, pair.dataset.right] : ["left", "right"];
  pair.querySelectorAll("figcaption").forEach((caption, side) => (caption.textContent = names[side]));
  inPair(pair, "again").hidden = given === null;
  const count = pairs.filter(voteOn).length;
  ofBallot("progress").value = count;
  ofBallot("count").textContent = `${count} of ${pairs.length}${count === pairs.length ? ": save your votes" : ""}`;
  ofBallot("save").disabled = ofBallot("clear").disabled = count === 0;
}

function save() {
  const voter = ofBallot("voter").value.trim();
  const votes = pairs.filter(voteOn).map((pair) => {
    const { pair: key, clip, left, right } = pair.dataset;
    return { pair: key, clip, left, right, ...voteOn(pair) };
  });
  const content = JSON.stringify({ voter, votes }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  const name = voter.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  link.download = name ? `votes-${name}.json` : "votes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function startAgain() {
  if (!confirm("Delete all votes on this page, for another voter? Votes that are not saved are lost.")) return;
  for (const pair of pairs) {
    kept.write(`vote-${pair.dataset.pair}`, null);
    kept.write(`seen-${pair.dataset.pair}`, null);
    inPair(pair, "names").open = false;
    show(pair);
  }
  ofBallot("voter").value = "";
  kept.write("voter", null);
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat || event.target.matches("input:not([type=range])")) return;
  const choice = KEYS[event.key.toLowerCase()];
  const pair = event.target.closest("[data-pair]") ?? pairs.find((one) => !voteOn(one));
  if (choice && pair) vote(pair, choice);
});

for (const pair of pairs) {
  for (const button of pair.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", () => vote(pair, button.dataset.choice));
  }
  inPair(pair, "names").addEventListener("toggle", (event) => event.target.open && kept.write(`seen-${pair.dataset.pair}`, "yes"));
  inPair(pair, "take-back").addEventListener("click", () => takeBack(pair));
  show(pair);
}
if (pairs.length) {
  ofBallot("voter").value = kept.read("voter") ?? "";
  ofBallot("voter").addEventListener("change", (event) => kept.write("voter", event.target.value));
  ofBallot("save").addEventListener("click", save);
  ofBallot("clear").addEventListener("click", startAgain);
}

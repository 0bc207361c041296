"use strict";
// The page of a server: the form, what it would make, and the videos, which are looked for while some are being made.
// Speaks the same interface as every other client. Text from the server becomes text, never markup, except the parts
// that the server's own templates make.

const ESTIMATE_AFTER = 350; // ms without a key press
const LOOK_EVERY = 1000; // ms while something is being made
const REST_EVERY = 10000; // ms otherwise
const ASK_FOR = 4000; // ms in which a second click removes a finished video
const TITLE = document.title;

const byId = (id) => document.getElementById(id);
const part = (name) => document.querySelector(`[data-part="${name}"]`);
const form = byId("wish");
const models = JSON.parse(byId("models").content.textContent);

function model() {
  return models.find((one) => one.name === byId("model")?.value) ?? models[0];
}

// Put a model's own settings into the form.
function showModel() {
  const own = model();
  setValues({ width: own.width, height: own.height, seconds: own.seconds, steps: own.steps, cfg_scale: own.cfg_scale, s2_scale: own.s2_scale });
  for (const id of ["width", "height"]) byId(id).step = own.multiple;
  part("image").hidden = own.image === "none";
  part("image-need").textContent = own.image === "required" ? "(needed)" : "(optional)";
  byId("input_reference").required = own.image === "required";
}

function setValues(values) {
  for (const [id, value] of Object.entries(values)) {
    const element = byId(id);
    if (element && value !== undefined && value !== null) element.value = value;
  }
  showRanges();
}

function showRanges() {
  for (const id of ["cfg_scale", "s2_scale"]) document.querySelector(`output[for="${id}"]`).value = byId(id).value;
  byId("pair").disabled = Number(byId("s2_scale").value) === 0;
}

function otherSeed() {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

// The strengths of S² of the videos that are asked for.
function wanted() {
  const scale = Number(byId("s2_scale").value);
  return byId("pair").checked && scale > 0 ? [0, scale] : [scale];
}

// The request for one video.
function wish(s2Scale) {
  const body = new FormData();
  const add = (name, value) => value !== "" && body.append(name, value);
  add("prompt", byId("prompt").value);
  add("negative_prompt", byId("negative_prompt").value);
  add("model", model().name);
  add("size", `${byId("width").value}x${byId("height").value}`);
  add("seconds", byId("seconds").value);
  add("seed", byId("seed").value);
  add("sampling[num_inference_steps]", byId("steps").value);
  add("guidance[cfg_scale]", byId("cfg_scale").value);
  add("guidance[s2_scale]", s2Scale);
  const image = byId("input_reference").files[0];
  if (image && model().image !== "none") body.append("input_reference", image);
  return body;
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.reload(); // the key is asked for again
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error.message);
  return content;
}

function showProblem(text) {
  part("problem").textContent = text;
  part("problem").hidden = !text;
}

let estimateTimer = 0;
let lastEstimate = null;

function estimateSoon() {
  showRanges();
  clearTimeout(estimateTimer);
  estimateTimer = setTimeout(estimate, ESTIMATE_AFTER);
}

async function estimate() {
  if (!byId("prompt").value.trim() || !form.checkValidity()) return;
  const mine = (lastEstimate = {});
  try {
    const found = await ask("/v1/videos/estimate", { method: "POST", body: wish(byId("s2_scale").value) });
    if (lastEstimate !== mine) return;
    showProblem("");
    part("estimate").textContent = wanted().length > 1 ? `two videos: ${found.words}` : found.words;
  } catch (error) {
    if (lastEstimate === mine) showProblem(error.message);
  }
}

async function make(event) {
  event.preventDefault();
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    for (const one of wanted()) await ask("/v1/videos", { method: "POST", body: wish(one) });
    showProblem("");
    part("news").textContent = "queued";
    await look();
    showNewest();
    watchSoon();
  } catch (error) {
    showProblem(error.message);
  } finally {
    button.disabled = false;
  }
}

// On a phone the videos are below the form.
function showNewest() {
  if (matchMedia("(max-width: 60rem)").matches) byId("history").firstElementChild?.scrollIntoView({ block: "nearest" });
}

// Fetch the videos, and exchange those that have changed, so that what plays goes on.
async function look() {
  const answer = await fetch("/history");
  if (!answer.ok) throw new Error("the server does not answer");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
  const before = new Map([...byId("history").querySelectorAll("[data-key]")].map((one) => [one.dataset.key, one]));
  const now = [...fresh.children].map((one) => {
    const old = before.get(one.dataset.key);
    if (!old) return adopt(one);
    if (old.dataset.version === one.dataset.version) return update(old, one);
    part("news").textContent = `${one.querySelector("h3").textContent}: changed`;
    estimateSoon(); // the pace of the last videos is known better now
    return adopt(one);
  });
  byId("history").replaceChildren(...now);
  const [first] = [...byId("history").querySelectorAll("progress")].map((bar) => bar.value).sort((a, b) => b - a);
  document.title = first === undefined ? TITLE : `${first} % · ${TITLE}`;
}

function adopt(fresh) {
  const element = document.importNode(fresh, true);
  startPlayers(element);
  return element;
}

// Only the progress of jobs.
function update(old, fresh) {
  for (const job of fresh.querySelectorAll(".job")) {
    const shown = old.querySelector(`.job[data-id="${job.dataset.id}"]`);
    const [bar, words] = [job.querySelector("progress"), job.querySelector(".words")];
    if (!bar || !shown) continue;
    shown.querySelector("progress").value = bar.value;
    shown.querySelector(".words").textContent = words.textContent;
  }
  return old;
}

async function act(event) {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const group = button.closest("[data-key]");
  if (button.dataset.act === "again") {
    const settings = JSON.parse(group.dataset.settings);
    if (byId("model")) byId("model").value = settings.model;
    showModel();
    setValues(settings);
    if (settings.image) showProblem("Choose its first image again: a page cannot do that for you.");
    byId("prompt").focus();
    estimateSoon();
    return;
  }
  if (button.dataset.asks && !button.classList.contains("asking")) return askFirst(button);
  button.disabled = true;
  for (const job of group.querySelectorAll(".job")) {
    await ask(`/v1/videos/${job.dataset.id}`, { method: "DELETE" }).catch((error) => showProblem(error.message));
  }
  await look().catch((error) => showProblem(error.message));
}

// A finished video is gone for good, so its button asks for a second click.
function askFirst(button) {
  const text = button.textContent;
  button.classList.add("asking");
  button.textContent = button.dataset.asks;
  part("news").textContent = button.dataset.asks;
  setTimeout(() => {
    button.classList.remove("asking");
    button.textContent = text;
  }, ASK_FOR);
}

let watchTimer = 0;

function watchSoon() {
  clearTimeout(watchTimer);
  const active = byId("history").querySelector("progress") !== null;
  watchTimer = setTimeout(watch, active && !document.hidden ? LOOK_EVERY : REST_EVERY);
}

async function watch() {
  try {
    await look();
  } catch {
    part("news").textContent = "the server does not answer"; // it may be starting again
  }
  watchSoon();
}

showModel();
otherSeed();
form.addEventListener("input", estimateSoon);
form.addEventListener("submit", make);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
byId("model")?.addEventListener("change", showModel);
part("dice").addEventListener("click", () => {
  otherSeed();
  estimateSoon();
});
byId("history").addEventListener("click", act);
document.addEventListener("visibilitychange", () => document.hidden || watch());
watchSoon();

"use strict";
// Players: videos that play, seek and step together, and a wipe between two of them. Without this script every video
// has its browser's own controls. Takes no data but the attributes of the page.

const READY_EVENTS = ["canplay", "seeked", "error"];
const LONGEST_WAIT = 3000; // ms; some phones load nothing before the first play

function fpsOf(video) {
  return Number(video.dataset.fps);
}

// Middle of the last frame, in seconds.
function endOf(video) {
  return (Number(video.dataset.frames) - 0.5) / fpsOf(video);
}

// Resolve when a video can go on from where it is, or never will.
function ready(video) {
  video.preload = "auto";
  return new Promise((resolve) => {
    const finish = () => {
      READY_EVENTS.forEach((name) => video.removeEventListener(name, check));
      resolve();
    };
    const check = () => {
      const needed = video.currentTime >= endOf(video) ? HTMLMediaElement.HAVE_CURRENT_DATA : HTMLMediaElement.HAVE_FUTURE_DATA;
      if (video.error || (!video.seeking && video.readyState >= needed)) finish();
    };
    READY_EVENTS.forEach((name) => video.addEventListener(name, check));
    setTimeout(finish, LONGEST_WAIT);
    check();
  });
}

class Player {
  constructor(root) {
    this.root = root;
    this.videos = [...root.querySelectorAll("video")];
    this.lead = this.videos.reduce((longest, video) => (endOf(video) > endOf(longest) ? video : longest));
    this.fps = fpsOf(this.lead);
    this.last = Number(this.lead.dataset.frames) - 1;
    this.loops = true;
    this.run = null; // a new object for each start, so that an older one notices that it is over
    this.prepare();
    this.listen();
    this.show();
  }

  part(name) {
    return this.root.querySelector(`[data-part="${name}"]`);
  }

  prepare() {
    for (const video of this.videos) {
      video.controls = false;
      video.loop = this.videos.length === 1; // several are started again together
      video.addEventListener("click", () => this.toggle());
      video.addEventListener("waiting", () => {
        if (this.run && !video.seeking) this.play(); // the others wait for it
      });
    }
    this.part("controls").hidden = false;
    this.part("full").hidden = !document.fullscreenEnabled;
  }

  listen() {
    const on = (name, event, action) => this.part(name)?.addEventListener(event, action);
    on("play", "click", () => this.toggle());
    on("back", "click", () => this.step(-1));
    on("forward", "click", () => this.step(1));
    on("seek", "input", (event) => this.seek(Number(event.target.value)));
    on("loop", "click", () => this.setLoop(!this.loops));
    on("wipe", "click", () => this.setWipe(!this.root.classList.contains("wiped")));
    on("first", "change", () => this.chooseSides());
    on("second", "change", () => this.chooseSides());
    on("divider", "input", (event) => this.setDivider(event.target.value));
    on("sound", "click", () => this.setSound());
    on("full", "click", () => (document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen()));
    this.root.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " " && !event.target.matches("button, select")) this.toggle(); // a button takes its own space
    else if (step && !event.target.matches("input, select")) this.step(step); // a slider takes its own arrows
    else return;
    event.preventDefault();
  }

  get frame() {
    return Math.min(this.last, Math.floor(this.lead.currentTime * this.fps + 0.01));
  }

  // To the middle of a frame of the longest video; shorter ones hold their last.
  seek(frame) {
    const time = (Math.max(0, Math.min(this.last, frame)) + 0.5) / this.fps;
    for (const video of this.videos) {
      video.preload = "auto";
      video.currentTime = Math.min(time, endOf(video));
    }
    this.show();
  }

  step(frames) {
    this.pause();
    this.seek(this.frame + frames);
  }

  toggle() {
    if (this.run) this.pause();
    else this.play();
  }

  async play() {
    const run = (this.run = {});
    this.videos.forEach((video) => video.pause());
    if (this.frame >= this.last) this.seek(0);
    this.show();
    await Promise.all(this.videos.map(ready));
    if (this.run !== run) return;
    for (const video of this.videos) {
      if (video.currentTime < endOf(video)) video.play().catch(() => {}); // stopped before it began
    }
    this.follow(run);
  }

  // Pause all of them on one frame.
  pause() {
    this.run = null;
    this.videos.forEach((video) => video.pause());
    this.seek(this.frame);
  }

  // At every picture of the screen: keep the others within a frame of the longest one.
  follow(run) {
    if (this.run !== run) return;
    if (this.lead.ended && this.loops) return this.play();
    if (this.lead.paused || this.lead.error) return this.pause(); // by the end, or by the browser
    const time = this.lead.currentTime;
    for (const video of this.videos) {
      const expected = Math.min(time, endOf(video));
      if (!video.seeking && !video.ended && Math.abs(video.currentTime - expected) > 1 / this.fps) {
        video.currentTime = expected;
      }
    }
    this.show();
    requestAnimationFrame(() => this.follow(run));
  }

  show() {
    const playing = this.run !== null;
    const button = this.part("play");
    button.title = playing ? "Pause" : "Play";
    button.setAttribute("aria-label", button.title);
    button.querySelector("use").setAttribute("href", playing ? "#pause" : "#play");
    const text = `${this.frame + 1} / ${this.last + 1}`;
    this.part("frame").value = text;
    this.part("seek").value = this.frame;
    this.part("seek").setAttribute("aria-valuetext", text);
  }

  setLoop(loops) {
    this.loops = loops;
    this.lead.loop = loops && this.videos.length === 1;
    this.part("loop").setAttribute("aria-pressed", loops);
  }

  setWipe(wiped) {
    this.root.classList.toggle("wiped", wiped);
    this.part("wipe").setAttribute("aria-pressed", wiped);
    this.part("divider").hidden = !wiped;
    this.chooseSides();
    for (const name of ["first", "second"]) {
      if (this.part(name)) this.part(name).hidden = !wiped;
    }
    this.setDivider(this.part("divider").value);
  }

  // Which two of the group the wipe shows; a pair has no choice.
  chooseSides() {
    const figures = [...this.root.querySelectorAll("figure")];
    const numbers = ["first", "second"].map((name, number) => Number(this.part(name)?.value ?? number));
    figures.forEach((figure, number) => {
      figure.classList.toggle("first", number === numbers[0]);
      figure.classList.toggle("second", number === numbers[1]);
    });
  }

  setDivider(percent) {
    this.part("stage").style.setProperty("--divider", `${percent}%`);
  }

  // Of the first video that has sound.
  setSound() {
    const video = this.root.querySelector("video[data-sound]");
    video.muted = !video.muted;
    this.part("sound").setAttribute("aria-pressed", !video.muted);
  }
}

// For a page that adds players later: call it again with the element that holds them.
function startPlayers(root = document) {
  root.querySelectorAll("[data-player]").forEach((element) => new Player(element));
  root.querySelectorAll("[data-needs-script]").forEach((element) => (element.hidden = false));
}

startPlayers();

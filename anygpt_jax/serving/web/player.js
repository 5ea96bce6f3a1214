// A player with a waveform, for sounds that are there and for sounds that are still coming.

import { context, wav } from "./sounds.js";

const SVG = "http://www.w3.org/2000/svg";
const PLAY = "M7 4.5v15l13-7.5z";
const PAUSE = "M6 4.5h4.5v15H6zM13.5 4.5H18v15h-4.5z";
let playing = null;
const all = new Set();

/** Draws every waveform again, in the colours of now. */
export function redraw() {
  for (const player of all) player.draw();
}

function drawing(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const shape = svg.appendChild(document.createElementNS(SVG, "path"));
  shape.setAttribute("d", path);
  return svg;
}

/** Seconds as 3.2, a minute and more as 1:05. */
function clock(seconds) {
  if (seconds < 60) return seconds.toFixed(1);
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

export class Player {
  /** `label` says what it is: "speech", "music". */
  constructor(label, rate) {
    this.rate = rate;
    this.samples = new Float32Array(0);
    this.complete = false;
    this.position = 0; // s
    this.sources = new Set();
    this.element = document.createElement("div");
    this.element.className = "player";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", `Player: ${label}`);
    this.label = label;

    this.button = this.element.appendChild(document.createElement("button"));
    this.button.type = "button";
    this.button.className = "play icon";
    this.button.disabled = true;
    this.button.addEventListener("click", () => (this.running ? this.pause() : this.play()));

    this.canvas = this.element.appendChild(document.createElement("canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "slider");
    this.canvas.setAttribute("aria-label", `Position in ${label}`);
    this.canvas.setAttribute("aria-valuemin", "0");
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.seekTo(event);
    });
    this.canvas.addEventListener("pointermove", (event) => event.buttons && this.seekTo(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));

    this.time = this.element.appendChild(document.createElement("span"));
    this.time.className = "time";
    this.save = this.element.appendChild(document.createElement("a"));
    this.save.download = `${label}.wav`;
    this.save.title = "Save";
    this.save.setAttribute("aria-label", `Save ${label}`);
    this.save.append(drawing("M12 4v11M7 11l5 5 5-5M5 20h14"));
    this.save.hidden = true;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    all.add(this);
    this.show();
  }

  get duration() {
    return this.samples.length / this.rate;
  }

  /** More of the sound. */
  add(samples, last) {
    const whole = new Float32Array(this.samples.length + samples.length);
    whole.set(this.samples);
    whole.set(samples, this.samples.length);
    this.samples = whole;
    this.complete = last;
    this.button.disabled = !whole.length;
    if (last && whole.length) {
      this.save.href = URL.createObjectURL(new Blob([wav(whole, this.rate)], { type: "audio/wav" }));
      this.save.hidden = false;
    }
    if (this.running) {
      if (samples.length) this.schedule();
      else this.ended();
    }
    this.draw();
    this.show();
  }

  /** Gives back what the browser would keep. */
  dispose() {
    this.pause();
    all.delete(this);
    if (this.save.href) URL.revokeObjectURL(this.save.href);
  }

  play() {
    if (playing && playing !== this) playing.pause();
    playing = this;
    if (this.complete && this.position >= this.duration - 0.01) this.position = 0;
    this.running = true;
    this.scheduled = this.position; // s of the sound that are on their way to the loudspeaker
    this.zero = null; // when, by the context's clock, the sound's start would have been
    this.schedule();
    this.follow();
    this.show();
  }

  schedule() {
    const from = Math.round(this.scheduled * this.rate);
    const piece = this.samples.subarray(from);
    if (!piece.length) return;
    const audio = context();
    const buffer = audio.createBuffer(1, piece.length, this.rate);
    buffer.copyToChannel(piece, 0);
    const source = audio.createBufferSource();
    source.buffer = buffer;
    source.connect(audio.destination);
    const now = audio.currentTime + 0.03;
    // What comes too late is played at once, and the clock with it.
    if (this.zero === null || this.zero + this.scheduled < now) this.zero = now - this.scheduled;
    source.start(this.zero + this.scheduled);
    this.scheduled = this.duration;
    this.sources.add(source);
    source.onended = () => {
      this.sources.delete(source);
      if (!this.sources.size) this.ended();
    };
  }

  ended() {
    if (!this.running || this.sources.size || !this.complete) return;
    this.position = this.duration;
    this.halt();
  }

  pause() {
    if (!this.running) return;
    this.position = this.heard();
    this.halt();
  }

  halt() {
    this.running = false;
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    this.draw();
    this.show();
  }

  heard() {
    if (!this.running || this.zero === null) return this.position;
    return Math.max(0, Math.min(context().currentTime - this.zero, this.scheduled));
  }

  seek(seconds) {
    const was = this.running;
    this.pause();
    this.position = Math.max(0, Math.min(seconds, this.duration));
    if (was) this.play();
    this.draw();
    this.show();
  }

  seekTo(event) {
    const box = this.canvas.getBoundingClientRect();
    this.seek(((event.clientX - box.left) / box.width) * this.duration);
  }

  key(event) {
    const steps = { ArrowLeft: -0.5, ArrowRight: 0.5, Home: -Infinity, End: Infinity };
    if (event.key in steps) this.seek(this.heard() + steps[event.key]);
    else if (event.key === " ") this.running ? this.pause() : this.play();
    else return;
    event.preventDefault();
  }

  follow() {
    if (!this.running) return;
    this.draw();
    this.show();
    requestAnimationFrame(() => this.follow());
  }

  show() {
    const at = this.heard();
    const path = this.running ? PAUSE : PLAY;
    if (this.button.dataset.path !== path) {
      this.button.dataset.path = path;
      this.button.replaceChildren(drawing(path));
      this.button.setAttribute("aria-label", `${this.running ? "Pause" : "Play"} ${this.label}`);
    }
    this.time.textContent = this.complete ? `${clock(at)} / ${clock(this.duration)} s` : `${clock(at)} …`;
    this.canvas.setAttribute("aria-valuemax", this.duration.toFixed(1));
    this.canvas.setAttribute("aria-valuenow", at.toFixed(1));
    this.canvas.setAttribute("aria-valuetext", `${at.toFixed(1)} of ${this.duration.toFixed(1)} seconds`);
  }

  draw() {
    const scale = devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * scale);
    const height = Math.round(this.canvas.clientHeight * scale);
    if (!width || !height) return;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const pen = this.canvas.getContext("2d");
    const style = getComputedStyle(this.element);
    pen.clearRect(0, 0, width, height);
    const step = 4 * scale;
    const bars = Math.floor(width / step);
    const size = this.samples.length / bars;
    const heard = this.duration ? this.heard() / this.duration : 0;
    const loudest = this.samples.reduce((most, s) => Math.max(most, Math.abs(s)), 0.05);
    for (let i = 0; i < bars; i++) {
      let peak = 0;
      for (let j = Math.floor(i * size); j < (i + 1) * size; j++) peak = Math.max(peak, Math.abs(this.samples[j]) || 0);
      const tall = Math.max(2 * scale, (peak / loudest) * height * 0.9);
      pen.fillStyle = style.getPropertyValue((i + 0.5) / bars <= heard ? "--accent" : "--bar");
      pen.beginPath();
      pen.roundRect(i * step, (height - tall) / 2, 2.5 * scale, tall, scale);
      pen.fill();
    }
  }
}

// Turns on the page. What the model or a person wrote goes in as text, never as HTML.

import { Player } from "./player.js";
import { fromPcm16 } from "./sounds.js";

function make(parent, tag, className = "") {
  const element = parent.appendChild(document.createElement(tag));
  if (className) element.className = className;
  return element;
}

export class TurnView {
  constructor(list, role) {
    this.element = make(list, "li", `turn ${role}`);
    make(this.element, "span", "hidden").textContent = role === "user" ? "You:" : "The model:";
    this.bubble = make(this.element, "div", "bubble");
    this.shown = new Map(); // part → what shows it
  }

  /** A whole part. */
  part(part) {
    if (part.type === "text") {
      make(this.bubble, "p").textContent = part.text;
    } else if (part.type === "image") {
      const img = make(this.bubble, "img");
      img.src = part.url;
      img.alt = part.alt || "Picture";
    } else {
      const player = new Player(part.modality, part.rate);
      player.add(part.samples, true);
      this.bubble.append(player.element);
    }
  }

  wait() {
    this.waiting = make(this.bubble, "span", "waiting");
    this.waiting.setAttribute("role", "status");
    this.waiting.setAttribute("aria-label", "The model is answering");
    for (let i = 0; i < 3; i++) make(this.waiting, "i");
  }

  /** More of an answer; `parts` is what the conversation keeps of it. Returns nothing. */
  delta(delta, parts) {
    if (delta.part === undefined) return;
    const key = delta.part;
    if (delta.content) {
      parts[key] ??= { type: "text", text: "" };
      parts[key].text += delta.content;
      this.at(key, "p").textContent = parts[key].text;
    }
    for (const image of delta.images ?? []) {
      parts[key] = { type: "image", url: image.image_url.url, id: image.id, alt: "Picture by the model" };
      const img = this.at(key, "img");
      img.src = parts[key].url;
      img.alt = parts[key].alt;
    }
    if (delta.audio) this.sound(key, delta.audio, parts);
  }

  sound(key, audio, parts) {
    let player = this.shown.get(key);
    if (!player) {
      parts[key] = { type: "sound", modality: audio.modality };
      player = new Player(audio.modality, audio.sample_rate);
      this.shown.set(key, player);
      this.bubble.insertBefore(player.element, this.waiting);
    }
    player.add(fromPcm16(audio.data), Boolean(audio.id));
    parts[key].id = audio.id;
  }

  at(key, tag) {
    if (!this.shown.has(key)) {
      const element = document.createElement(tag);
      this.shown.set(key, element);
      this.bubble.insertBefore(element, this.waiting);
    }
    return this.shown.get(key);
  }

  /** The answer is over; what is still incomplete can be played as far as it came. */
  done() {
    this.waiting?.remove();
    for (const shown of this.shown.values()) if (shown instanceof Player && !shown.complete) shown.add(new Float32Array(0), true);
  }

  problem(sentence) {
    const p = make(this.bubble, "p", "problem");
    p.setAttribute("role", "alert");
    p.textContent = sentence;
  }

  /** Buttons under the turn: [label, what it does]. */
  actions(buttons) {
    this.bar?.remove();
    this.bar = make(this.element, "div", "actions");
    for (const [label, act] of buttons) {
      const button = make(this.bar, "button", "plain");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", act);
    }
  }

  remove() {
    for (const shown of this.shown.values()) if (shown instanceof Player) shown.dispose();
    this.element.remove();
  }
}

// The page: what is typed, dropped and recorded goes to the model, and its answers come back as they are made.

import * as api from "./api.js";
import * as attachments from "./attachments.js";
import { Conversation } from "./conversation.js";
import { drops } from "./drops.js";
import { redraw } from "./player.js";
import { Recorder, context } from "./sounds.js";
import { themes } from "./theme.js";
import { TurnView } from "./view.js";

const $ = (id) => document.getElementById(id);
const TARGETS = { text: "in text", image: "as a picture", speech: "in speech", music: "in music", any: "freely" };
const EXAMPLES = [
  ["image", "Picture", "a penguin left of a pizza on a green background"],
  ["speech", "Speech", "please say the small house stands behind a green hill"],
  ["music", "Music", "a fast reel in d major played on the violin"],
  ["any", "Freely", "please draw a red bicycle on a yellow background"],
];

const conversation = new Conversation();
const views = new Map(); // turn → TurnView
let attached = [];
let model = null;
let running = null; // AbortController of the answer that is being written
let recorder = null;

themes($("theme"), redraw);
connect();

async function connect() {
  try {
    model = await api.model();
  } catch (error) {
    if (error.status === 401) return askToken();
    return notice(`The server cannot be reached: ${error.message}`);
  }
  $("model").textContent = model.id;
  for (const name of [...model.modalities, "any"]) $("target").add(new Option(TARGETS[name] ?? name, name));
  for (const name of model.voices) $("voice").add(new Option(name === "default" ? "own" : name, name));
  $("target").value = "any";
  $("record").hidden = !model.modalities.includes("speech");
  for (const [target, label, text] of EXAMPLES) {
    if (target === "any" || model.modalities.includes(target)) example(target, label, text);
  }
  choose();
}

function example(target, label, text) {
  const button = $("examples").appendChild(document.createElement("button"));
  button.type = "button";
  button.append(Object.assign(document.createElement("small"), { textContent: label }), text);
  button.addEventListener("click", () => {
    $("target").value = target;
    choose();
    $("text").value = text;
    send();
  });
}

function askToken() {
  const dialog = $("ask-token");
  dialog.addEventListener(
    "close",
    () => {
      api.setToken($("token").value.trim());
      connect();
    },
    { once: true },
  );
  dialog.showModal();
}

function notice(sentence = "") {
  $("notice").textContent = sentence;
  $("notice").hidden = !sentence;
}

function choose() {
  $("voices").hidden = !["speech", "any"].includes($("target").value);
}

// Saying something

function send() {
  if (running || recorder) return;
  const text = $("text").value.trim();
  if (!model || (!text && !attached.length)) return $("text").focus();
  const parts = [...(text ? [{ type: "text", text }] : []), ...attached];
  $("text").value = "";
  attached = [];
  notice();
  fit();
  showAttached();
  say({ role: "user", parts });
}

function say(turn) {
  conversation.turns.push(turn);
  $("welcome").hidden = true;
  const view = show(turn);
  turn.parts.forEach((part) => view.part(part));
  answer();
}

function show(turn) {
  const view = new TurnView($("turns"), turn.role);
  views.set(turn, view);
  return view;
}

async function answer() {
  context(); // while the gesture lasts that browsers ask for
  for (const view of views.values()) view.actions([]);
  const request = conversation.request($("target").value, $("voice").value, model.limits.media);
  const turn = { role: "assistant", parts: [] };
  conversation.turns.push(turn);
  const view = show(turn);
  view.wait();
  busy(true);
  $("conversation").scrollTop = $("conversation").scrollHeight;
  try {
    for await (const delta of api.complete(request, running.signal)) {
      view.delta(delta, turn.parts);
      follow();
    }
  } catch (error) {
    if (error.status === 401) askToken();
    if (error.name !== "AbortError") view.problem(error.message || "The server cannot be reached.");
    else if (!turn.parts.length) view.problem("Stopped.");
  }
  view.done();
  // What did not become whole cannot be said again.
  turn.parts = turn.parts.filter((part) => part && (part.type === "text" || part.id));
  busy(false);
  if (views.get(turn) === view) offer(turn, view);
  follow();
}

function offer(turn, view) {
  const text = turn.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");
  const buttons = [["Regenerate", again], ["Edit", edit]];
  if (text) buttons.push(["Copy text", () => navigator.clipboard.writeText(text).catch(() => notice("The browser did not let us copy."))]);
  view.actions(buttons);
}

function takeBack(whole) {
  for (const [turn, view] of [...views].reverse()) {
    if (turn.role === "user" && !whole) break;
    view.remove();
    views.delete(turn);
    if (turn.role === "user") break;
  }
  return conversation.undo(whole);
}

function again() {
  if (!running && takeBack(false)) answer();
}

function edit() {
  if (running) return;
  const turn = takeBack(true);
  if (!turn) return;
  $("text").value = turn.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");
  attached = turn.parts.filter((part) => part.type !== "text");
  $("welcome").hidden = conversation.turns.length > 0;
  showAttached();
  fit();
  $("text").focus();
}

function restart() {
  stop();
  for (const view of views.values()) view.remove();
  views.clear();
  conversation.turns = [];
  $("welcome").hidden = false;
  notice();
  $("text").focus();
}

function stop() {
  running?.abort();
}

function busy(is) {
  running = is ? new AbortController() : null;
  const focused = document.activeElement === $("send") || document.activeElement === $("stop");
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (focused) $(is ? "stop" : "send").focus();
}

/** Keeps the end in sight, unless the person has scrolled up. */
function follow() {
  const main = $("conversation");
  if (main.scrollHeight - main.scrollTop - main.clientHeight < 320) main.scrollTop = main.scrollHeight;
}

// Files and the microphone

async function attach(files) {
  notice();
  for (const file of files) {
    try {
      const { part, note } = await attachments.read(file, model.seconds);
      if (attached.length >= model.limits.media) throw new Error(`At most ${model.limits.media} files at once.`);
      attached.push(part);
      if (note) notice(note);
    } catch (error) {
      notice(error.message);
    }
  }
  showAttached();
  $("text").focus();
}

function showAttached() {
  const items = attached.map((part) =>
    attachments.item(part, model.seconds, () => {
      attached = attached.filter((other) => other !== part);
      showAttached();
      $("text").focus();
    }),
  );
  $("attached").replaceChildren(...items);
  follow();
}

async function record() {
  if (recorder) return recorder.stop();
  notice();
  recorder = new Recorder(model.seconds.speech, (seconds) => ($("recorded").textContent = `${seconds.toFixed(1)} s`));
  try {
    await recorder.start();
    recording(true);
    const recorded = await recorder.finished;
    if (recorded?.samples.length) attached.push(attachments.sound(recorded.samples, "speech"));
  } catch (error) {
    const denied = error.name === "NotAllowedError" || error.name === "NotFoundError" || !navigator.mediaDevices;
    notice(denied ? "The browser gives no microphone to this page." : "The recording cannot be used; try again.");
  }
  recorder = null;
  recording(false);
  showAttached();
}

function recording(is) {
  $("record").setAttribute("aria-pressed", is);
  $("record").setAttribute("aria-label", is ? "Stop recording" : "Record speech");
  $("record").title = is ? "Stop recording" : "Record speech";
  if (!is) $("recorded").textContent = "";
}

// What is pressed, typed and dropped

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("text").addEventListener("input", fit);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("text").addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) attach([...event.clipboardData.files]);
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", restart);
$("target").addEventListener("change", choose);
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  attach([...$("files").files]);
  $("files").value = "";
});
$("record").addEventListener("click", record);

addEventListener("keydown", (event) => {
  if (event.key === "Escape") recorder ? recorder.cancel() : stop();
  const typing = event.target.closest?.("textarea, input, select, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $("text").focus();
  }
});

drops($("drop"), (files) => model && attach(files));

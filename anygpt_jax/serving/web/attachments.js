// Files on their way in: pictures are made small enough to send, sounds become what the server reads.

import { Player } from "./player.js";
import { RATE, decode, toBase64, wav } from "./sounds.js";

const EDGE = 768; // px of a picture's longer side: the model sees far fewer, and nothing of the file's notes is sent

async function picture(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, EDGE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/png");
}

/** What a conversation keeps of a sound. */
export function sound(samples, modality) {
  return { type: "sound", modality, samples, rate: RATE, data: toBase64(wav(samples)) };
}

/** A file as a part of a message, and a sentence if some of it was left out. Throws Error with a sentence. */
export async function read(file, seconds) {
  const broken = new Error(`${file.name} is neither a picture nor a sound that this browser can read.`);
  if (file.size > 200e6) throw new Error(`${file.name} is too large.`);
  if (file.type.startsWith("image/")) {
    try {
      return { part: { type: "image", url: await picture(file), alt: file.name } };
    } catch {
      throw broken;
    }
  }
  try {
    const { samples, cut } = await decode(await file.arrayBuffer(), seconds.speech);
    if (!samples.length) throw broken;
    const note = cut ? `${file.name}: the first ${seconds.speech} seconds are used.` : "";
    return { part: sound(samples, "speech"), note };
  } catch {
    throw broken;
  }
}

/** Shows a part in a list of attachments; `remove` takes it out. */
export function item(part, seconds, remove) {
  const li = document.createElement("li");
  if (part.type === "image") {
    const img = li.appendChild(document.createElement("img"));
    img.src = part.url;
    img.alt = part.alt;
  } else {
    const player = new Player("attached sound", part.rate);
    player.add(part.samples, true);
    li.append(player.element);
    if (seconds.music) li.append(kinds(part, seconds));
  }
  const button = li.appendChild(document.createElement("button"));
  button.type = "button";
  button.className = "remove";
  button.textContent = "×";
  button.setAttribute("aria-label", "Remove");
  button.addEventListener("click", remove);
  return li;
}

/** Speech and music are told apart by who sends them. */
function kinds(part, seconds) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", "What the sound is");
  for (const kind of ["speech", "music"]) select.add(new Option(kind, kind));
  select.value = part.modality;
  select.addEventListener("change", () => {
    part.modality = select.value;
    part.data = toBase64(wav(part.samples.subarray(0, Math.floor(seconds[select.value] * part.rate))));
  });
  return select;
}

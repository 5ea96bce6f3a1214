// The turns of a conversation, and how they are said to the server.

const TURNS = 12; // of the past that are sent: the model's memory is shorter than that

/** A turn is {role, parts}; parts are {type: "text" | "image" | "sound", …}. */
export class Conversation {
  turns = [];

  /** The request for an answer to the last turn. */
  request(target, voice, most) {
    const turns = this.turns.slice(-TURNS);
    let media = 0;
    const messages = [];
    for (const turn of turns.reverse()) {
      media += turn.parts.filter((part) => part.type !== "text").length;
      if (media > most) break;
      const content = turn.parts.map(said).filter(Boolean);
      if (content.length) messages.unshift({ role: turn.role, content });
    }
    const request = { messages, modalities: [target], seed: crypto.getRandomValues(new Uint32Array(1))[0] };
    request.audio = { format: "pcm16", voice };
    return request;
  }

  /** Takes the last answer back, and with it what it answered if `turn`. */
  undo(turn = false) {
    while (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    return turn ? this.turns.pop() : this.turns.at(-1);
  }
}

function said(part) {
  if (part.type === "text") return part.text.trim() && { type: "text", text: part.text };
  if (part.id) return { type: "media", id: part.id };
  if (part.type === "image") return { type: "image_url", image_url: { url: part.url } };
  return part.data && { type: "input_audio", input_audio: { data: part.data, format: "wav" }, modality: part.modality };
}

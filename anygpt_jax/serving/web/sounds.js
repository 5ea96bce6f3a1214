// Sound as samples: from files and the microphone to what the server reads, and from the server to what can be played.

let shared = null;

/** The page's one audio context; browsers want it made by a gesture. */
export function context() {
  shared ??= new AudioContext();
  if (shared.state === "suspended") shared.resume();
  return shared;
}

export const RATE = 16000;

/** Any sound that the browser reads → mono Float32Array at RATE, of at most `longest` seconds, and whether it was cut. */
export async function decode(bytes, longest) {
  // A context at the wanted rate resamples what it decodes.
  const offline = new OfflineAudioContext(1, 1, RATE);
  const buffer = await offline.decodeAudioData(bytes);
  const samples = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    const channel = buffer.getChannelData(c);
    for (let i = 0; i < samples.length; i++) samples[i] += channel[i] / buffer.numberOfChannels;
  }
  const most = Math.floor(longest * RATE);
  return { samples: samples.subarray(0, most), cut: samples.length > most };
}

/** Samples → a 16-bit WAV file. */
export function wav(samples, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const ascii = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  ascii(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((s, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, s)) * 32767, true));
  return new Uint8Array(view.buffer);
}

/** 16-bit samples in base64 → Float32Array. */
export function fromPcm16(base64) {
  const text = atob(base64);
  const samples = new Float32Array(text.length >> 1);
  for (let i = 0; i < samples.length; i++) {
    const value = text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8);
    samples[i] = (value > 32767 ? value - 65536 : value) / 32768;
  }
  return samples;
}

export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** Records the microphone until `stop` or for `longest` seconds. `tick(seconds)` is called as it goes. */
export class Recorder {
  constructor(longest, tick) {
    this.longest = longest;
    this.tick = tick;
  }

  /** Begins; resolves when the microphone is open. `finished` then resolves to {samples, cut}, or null if cancelled. */
  async start() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, noiseSuppression: true } });
    this.media = new MediaRecorder(stream);
    const pieces = [];
    const began = performance.now();
    const timer = setInterval(() => {
      const seconds = (performance.now() - began) / 1000;
      this.tick(Math.min(seconds, this.longest));
      if (seconds >= this.longest) this.stop();
    }, 100);
    this.finished = new Promise((resolve, reject) => {
      this.media.ondataavailable = (event) => pieces.push(event.data);
      this.media.onstop = async () => {
        clearInterval(timer);
        stream.getTracks().forEach((track) => track.stop());
        if (this.cancelled) return resolve(null);
        try {
          resolve(await decode(await new Blob(pieces).arrayBuffer(), this.longest));
        } catch (error) {
          reject(error);
        }
      };
    });
    this.media.start();
  }

  stop() {
    if (this.media?.state === "recording") this.media.stop();
  }

  cancel() {
    this.cancelled = true;
    this.stop();
  }
}

// The server's API: models, and chat completions as a stream of events.

const KEY = "anygpt-token";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function checked(response) {
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between us and the server answered.
  }
  throw new ApiError(message, response.status);
}

/** The model that is served, as /v1/models describes it. */
export async function model() {
  const response = await checked(await fetch("v1/models", { headers: headers() }));
  return (await response.json()).data[0];
}

/** Yields the deltas of one answer; ends when it is complete. Throws ApiError, or AbortError when the signal says so. */
export async function* complete(request, signal) {
  const response = await checked(
    await fetch("v1/chat/completions", {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify({ ...request, stream: true }),
      signal,
    }),
  );
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 500);
    const choice = chunk.choices[0];
    if (choice) yield { ...choice.delta, finish: choice.finish_reason };
  }
  throw new ApiError("The server broke off before the answer was complete.", 0);
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const data = held
        .slice(0, end)
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      held = held.slice(end + 2);
      if (data) yield data;
    }
  }
}

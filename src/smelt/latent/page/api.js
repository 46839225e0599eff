// Talks to the server this page came from: information as JSON, answers as a stream of events.

const KEY = "smelt.key";

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const saveKey = (key) => sessionStorage.setItem(KEY, key);

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server cannot be reached", 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ServerError(body?.error?.message ?? `the server answered ${response.status}`, response.status);
}

export async function describe() {
  return (await call("/v1/latent")).json();
}

/** Yields the chunks of one answer; throws what the server reports, also in the middle. */
export async function* stream(path, body, signal) {
  const options = { stream: true, stream_options: { continuous_usage_stats: true } };
  const response = await call(path, { method: "POST", body: JSON.stringify({ ...body, ...options }), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("the answer broke off", 0);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, 500);
      yield chunk;
    }
  }
}

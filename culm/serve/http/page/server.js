// -- the server --------------------------------------------------------------------------------

class Refused extends Error {
  constructor(message, status, request) {
    super(message);
    Object.assign(this, { status, request });
  }
}

// A response of the API.
async function call(path, { body, signal } = {}) {
  const key = sessionStorage.getItem("culm.key");
  const response = await fetch(path, {
    method: body ? "POST" : "GET", body: body && JSON.stringify(body), signal,
    headers: { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) },
  }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.", 0);
  });
  if (response.ok) return response;
  const said = (await response.json().catch(() => null))?.error?.message;
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  throw new Refused(
    (said ?? `The server answered ${response.status}.`) + again, response.status,
    response.headers.get("x-request-id"),
  );
}

// The objects of a stream of events, which must come to its end.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("The connection broke before the answer was complete.");
    });
    if (done) throw new Error("The connection ended before the answer was complete.");
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Asks for the next message and fills `message` as it comes; returns its facts. `changed` is called
// after each piece.
async function answer(asked, message, signal, changed) {
  const begun = performance.now();
  const facts = { model: asked.model };
  let first = null, pieces = 0;
  const body = { ...asked, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", { body, signal });
  for await (const { choices: [choice], usage } of events(response.body)) {
    if (choice) {
      takeDelta(message, choice.delta ?? {});
      facts.finish = choice.finish_reason ?? facts.finish;
      const said = message.content || message.reasoning_content || message.tool_calls;
      if (said && first === null) first = performance.now();
      pieces += said ? 1 : 0;
    }
    if (usage) {
      facts.tokens = usage.completion_tokens;
      facts.context = usage.total_tokens;
    }
    const now = performance.now();
    facts.seconds = (now - begun) / 1000;
    facts.wait = ((first ?? now) - begun) / 1000;
    changed(pieces, first === null ? 0 : (now - first) / 1000);
  }
  if (!facts.finish) throw new Error("The answer has no end; the server stopped writing it.");
  return facts;
}

// The API key, and whether a conversation can begin: a browser hides the reason for the refusal of a WebSocket.
// The page reads the key from its address, #key=..., which the browser sends to no server.

const key = new URLSearchParams(location.hash.slice(1)).get("key");

// Returns the subprotocols of a WebSocket, the only place for a key that a browser permits.
export function subprotocols() {
  return key ? ["pcm16", `openai-insecure-api-key.${key}`] : ["pcm16"];
}

// Returns the headers of a request.
export function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Returns { dialect } if a conversation can begin now; otherwise throws the reason.
export async function access() {
  let response;
  try {
    response = await fetch("access", { method: "POST", headers: authorization() });
  } catch {
    throw new Error("The server does not answer.");
  }
  const answer = await response.json();
  if (response.ok) return answer;
  const { code, message } = answer.error;
  throw new Error(code === "invalid_api_key" ? `${message}: add #key=... to this page's address` : message);
}

// Returns the reason for a refusal; null if a conversation can begin now.
export async function whyRefused() {
  try {
    await access();
    return null;
  } catch (error) {
    return error.message;
  }
}

// The API key, and whether a conversation could begin: a browser hides from a page why a WebSocket was refused.
// The key is given to the page in its address, as #key=..., which no server sees.

const key = new URLSearchParams(location.hash.slice(1)).get("key");

// The subprotocols of a WebSocket: the only place where a browser lets a page put a key.
export function subprotocols() {
  return key ? ["pcm16", `openai-insecure-api-key.${key}`] : ["pcm16"];
}

// The headers of a request.
export function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// What may begin now: { dialect }. Throws with the reason in words where nothing may.
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

// The reason in words; null where nothing stands in the way any more.
export async function whyRefused() {
  try {
    await access();
    return null;
  } catch (error) {
    return error.message;
  }
}

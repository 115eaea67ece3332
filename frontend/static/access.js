// The API key, and why a conversation was refused: a browser hides that from a page.
// The key is given to the page in its address, as #key=..., which no server sees.

const key = new URLSearchParams(location.hash.slice(1)).get("key");

// The subprotocols of a WebSocket: the only place where a browser lets a page put a key.
export function subprotocols() {
  return key ? ["pcm16", `openai-insecure-api-key.${key}`] : ["pcm16"];
}

// The reason in words; null where nothing stands in the way any more.
export async function whyRefused() {
  try {
    const response = await fetch("access", { method: "POST", headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (response.ok) return null;
    const { error } = await response.json();
    return error.code === "invalid_api_key" ? `${error.message}: add #key=... to this page's address` : error.message;
  } catch {
    return "The server does not answer.";
  }
}

"""OpenAI's Realtime protocol (GA) over the bridge's conversations, at `/v1/realtime`."""

"""The session core under all protocols: the stream to the engine, its clocks, its limits and its end."""

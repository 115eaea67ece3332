"""The page in a browser, and the routes that only the page uses."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from config import Settings
from frontend.bridge import Bridge
from frontend.plugins import Plugins

STATIC = Path(__file__).parent / "static"
SUGGESTIONS = "suggestions.json"  # in the checkpoint's folder: a list of sentences


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Serve the page."""
    plugins.routes.append(add_routes)


def add_routes(app: FastAPI, bridge: Bridge) -> None:
    """Add the page and its routes to the application."""

    @app.post("/access")  # a browser sends the page's origin only with a POST
    async def access(request: Request) -> JSONResponse:
        """Report whether this client can begin a conversation now, and the dialect.

        Browsers hide the reason why a WebSocket was refused.
        """
        if refusal := bridge.admission.refusal(bridge.access.check(request)):
            raise refusal
        return JSONResponse({"status": "ok", "dialect": bridge.settings.engine.dialect})

    @app.get("/suggestions")
    def suggested() -> JSONResponse:  # reads a file: runs in a thread
        """Return sentences that a user may try."""
        return JSONResponse(suggestions(bridge.settings))

    @app.get("/voices")
    async def voices() -> JSONResponse:
        """Return the names of the checkpoint's voices; none until the engine has been ready."""
        return JSONResponse(list(bridge.engine.voices))

    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")


def suggestions(settings: Settings) -> list[str]:
    """Return the sentences of the checkpoint's folder; none if the bridge has no such folder, or it no such file."""
    folder = settings.qwen.folder
    if folder is None or not (folder / SUGGESTIONS).is_file():
        return []
    sentences = json.loads((folder / SUGGESTIONS).read_text(encoding="utf-8"))
    return [str(sentence) for sentence in sentences]

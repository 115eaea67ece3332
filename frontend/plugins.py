"""The optional parts of the bridge. Each is a module with `add_to(plugins, settings)`; the small bridge has none."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from config import Settings, SettingsError
from frontend.server import Server
from frontend.tick import Converse, TickError, TickIn, TickOut
from frontend.tracer import Tracer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from frontend.bridge import Bridge


class Engine(Protocol):
    """The engine of a bridge: one Triton server, or several."""

    @property
    def slots(self) -> int:
        """Capacity in conversations; 0: unknown."""

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the checkpoint's voices; empty until the engine has been ready."""

    @property
    def problem(self) -> str | None:
        """The reason if the engine counts as dead."""

    def problem_of(self, number: int) -> str | None:
        """Return the reason if the engine of server `number` counts as dead."""

    def has_answered_since(self, number: int, moment_s: float) -> bool:
        """Return whether server `number` has answered a tick since a time on the monotonic clock."""

    async def not_ready(self) -> str | None:
        """Return the reason if no conversation can begin now."""

    async def watch(self) -> None:
        """Prepare the engine, and watch it if it has a health probe, until cancelled."""

    def converse(self, sequence_id: int, ticks: AsyncIterator[TickIn]) -> AsyncGenerator[TickOut | TickError]:
        """Yield the answers of one conversation; see `TritonLink.converse`."""

    async def close(self) -> None:
        """Close all channels."""


@dataclass
class Plugins:
    """Contributions of the optional parts."""

    tracer: Tracer = field(default_factory=Tracer)
    engine: Callable[[Settings, Tracer], Engine] = Server
    decorators: list[Callable[[Converse], Converse]] = field(default_factory=list)  # innermost first
    routes: list[Callable[[FastAPI, Bridge], None]] = field(default_factory=list)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # called at the bridge's end, last first


class Part(NamedTuple):
    """A file or folder of `frontend` that may be absent."""

    name: str
    module: str  # the module with `add_to`
    setting: str = ""  # the setting that requires the part; without one the part is added if it is present


PARTS = (
    Part("traces.py", "frontend.traces", "bridge.traces_url"),
    Part("failover", "frontend.failover.part"),
    Part("recording.py", "frontend.recording", "bridge.record_folder"),
    Part("realtime", "frontend.realtime.routes"),
    Part("webrtc", "frontend.webrtc.routes"),
    Part("page.py", "frontend.page"),  # last: it serves every other path
)
"""All parts, in the order in which they are added."""


def load_plugins(settings: Settings) -> Plugins:
    """Add the parts that are present. Raises `SettingsError` if a setting requires an absent part."""
    plugins = Plugins()
    for part in PARTS:
        section, _, name = part.setting.partition(".")
        is_required = bool(name and getattr(getattr(settings, section), name))
        if name and not is_required:
            continue
        if (Path(__file__).parent / part.name).exists():
            import_module(part.module).add_to(plugins, settings)
        elif is_required:
            raise SettingsError(f"{part.setting} requires frontend/{part.name}, which this bridge does not have")
    return plugins

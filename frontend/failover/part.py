"""Failover as an optional part of the bridge."""

from __future__ import annotations

from config import Settings, SettingsError
from frontend.failover.mover import Mover
from frontend.failover.servers import Servers
from frontend.plugins import Plugins
from frontend.tick import Converse


def add_to(plugins: Plugins, settings: Settings) -> None:
    """Use all servers, with probes; move conversations if `bridge.move_within_s` is set. Raises `SettingsError`."""
    plugins.engine = Servers
    if not settings.bridge.move_within_s:
        return
    if settings.engine.dialect != "turn":
        raise SettingsError(
            f"bridge.move_within_s is {settings.bridge.move_within_s:g}, expected 0: "
            f"the dialect {settings.engine.dialect!r} has no turns that another server could read"
        )

    def moved(converse: Converse) -> Converse:
        return Mover(converse, settings).converse

    plugins.decorators.append(moved)

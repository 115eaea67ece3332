"""The section [build]: storage of exported graphs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildSettings:
    """The folder of exported graphs."""

    graphs: str

"""Exceptions from the proxy variables: a proxy cannot reach this machine, or the servers next to it, by these names."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def bypass_proxies(environ: MutableMapping[str, str], hosts: Iterable[str] = ()) -> None:
    """Add this machine and `hosts` to both spellings of NO_PROXY; programs differ in which spelling they read."""
    found = [part.strip() for name in ("no_proxy", "NO_PROXY") for part in environ.get(name, "").split(",")]
    if "*" in found:
        environ["no_proxy"] = environ["NO_PROXY"] = "*"
        return
    merged = ",".join(dict.fromkeys(filter(None, [*found, *THIS_MACHINE, *hosts])))
    environ["no_proxy"] = environ["NO_PROXY"] = merged

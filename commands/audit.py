"""./sca audit: known vulnerabilities of the pinned dependencies.

Queries osv.dev (https://google.github.io/osv.dev/post-v1-querybatch/) for every version of requirements.lock. The
section `[tool.sca.audit.accepted]` of pyproject.toml holds the ids of accepted vulnerabilities, with the reasons.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement

from commands.console import ROOT, console
from config.loader import read_toml

SERVICE = "https://api.osv.dev"
LOCK = ROOT / "requirements.lock"
TIMEOUT_S = 30
NOT_RUN = 3  # exit status if the service cannot be reached


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--service", default=SERVICE, help="address of osv.dev, or of a service with the same API")
    parser.add_argument("--lock", type=Path, default=LOCK, help="file of pinned requirements")


def run(arguments: argparse.Namespace) -> int:
    """Print the vulnerabilities; return 1 if one is not accepted, `NOT_RUN` if the service cannot be reached."""
    pins = pinned(arguments.lock)
    try:
        found = known_vulnerabilities(arguments.service, pins)
    except OSError as error:
        console.print(f"{arguments.service} does not answer: {error}", soft_wrap=True)
        return NOT_RUN
    known = accepted()
    for (name, version), ids in found.items():
        for one in ids:
            reason = f"accepted: {known[one]}" if one in known else f"see https://osv.dev/{one}"
            print(f"{name} {version}: {one}, {reason}")
    new = {one for ids in found.values() for one in ids if one not in known}
    print(f"{len(pins)} versions, {len(new)} vulnerabilities that are not accepted")
    return 1 if new else 0


def pinned(lock: Path) -> list[tuple[str, str]]:
    """Return name and version of every requirement, for all platforms.

    Raises `ValueError` for a requirement without a version.
    """
    pins = []
    for line in lock.read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            versions = [each.version for each in requirement.specifier if each.operator == "=="]
            if len(versions) != 1:
                raise ValueError(f"{lock}: expected one version with ==, got {text!r}")
            pins.append((requirement.name, versions[0]))
    return pins


def known_vulnerabilities(service: str, pins: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Return the ids of known vulnerabilities by version; raise `OSError` if the service cannot be reached."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(f"{service}/v1/querybatch", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        results = json.load(answer)["results"]
    ids = [[one["id"] for one in result.get("vulns", ())] for result in results]
    return {pin: some for pin, some in zip(pins, ids, strict=True) if some}


def accepted() -> dict[str, str]:
    """Return the ids of vulnerabilities that do not concern this project, with the reasons."""
    return dict(read_toml(ROOT / "pyproject.toml")["tool"]["sca"]["audit"]["accepted"])

"""./sca doctor: checks of this machine, each with what to do if it fails."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from commands.console import ROOT, UserError, add_build_argument, console, load_settings, quiet_libraries
from commands.ports import needed_ports
from config import Settings
from config.loader import NOT_SETTINGS, tomllib
from config.secret import HIDDEN, SECRET_VARIABLES
from config.settings import RANDOM
from launch.triton_install import TritonInstall, TritonMissingError

MIN_SHARED_MEMORY = 256 * 2**20  # the Python backend passes tensors through it; Docker's default of 64 MB is too small
MIN_DISK = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """Result of one check: subject, observation, and what to do if it prevents serving."""

    subject: str
    found: str
    to_do: str = ""
    fatal: bool = True

    @property
    def ok(self) -> bool:
        """True if nothing has to be done."""
        return not self.to_do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_build_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 if this machine cannot serve."""
    quiet_libraries()
    can_serve = True
    for finding in findings(arguments.build):
        mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]" if finding.fatal else "[yellow]note[/yellow]"
        console.print(f"{mark} {finding.subject:<14} {finding.found}", soft_wrap=True)
        if finding.to_do:
            console.print(f"     {'':<14} → {finding.to_do}", soft_wrap=True)
        can_serve = can_serve and (finding.ok or not finding.fatal)
    console.print("It can serve: ./sca serve" if can_serve else "It cannot serve yet.")
    return 0 if can_serve else 1


def findings(build: Path) -> Iterator[Finding]:
    """Yield all findings, the cheapest check first."""
    yield _python()
    yield packages()
    yield _triton()
    try:
        settings = load_settings()
    except UserError as error:
        yield Finding("settings", str(error), "correct it; config/default.toml documents every setting")
        return
    yield _environment()
    yield _ports(settings)
    yield _shared_memory()
    yield _disk(build)
    yield _gpu(settings)
    yield _checkpoint(settings)


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", found, "use Python 3.10 to 3.13: SCA_PYTHON=/path/to/python3 ./sca doctor")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding("Python", found, "the pip-installed Triton is for Linux on x86_64; use the container elsewhere")
    return Finding("Python", found)


def packages() -> Finding:
    """Compare the installed versions to requirements.lock: the packages of serving, and all other installed pins."""
    pins = _pins()
    needed = _needed(sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]))
    wrong, total = [], 0
    for name, pinned in pins.items():
        try:
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            if name not in needed:
                continue
            installed = "missing"
        total += 1
        if installed != pinned:
            wrong.append(f"{name} is {installed}, pinned {pinned}")
    if wrong:
        return Finding(
            "packages", f"{len(wrong)} of {total}: {'; '.join(wrong[:3])}", "remove .venv and run ./sca again"
        )
    return Finding("packages", f"all {total} as pinned in requirements.lock")


def _pins() -> dict[str, str]:
    """Return the version of each package in requirements.lock, for this Python and platform."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        requirement, _, marker = line.partition(" ; ")
        name, _, pinned = requirement.partition("==")
        if not marker or Marker(marker).evaluate():
            pins[canonicalize_name(re.sub(r"\[.*\]", "", name))] = pinned
    return pins


def _needed(requirements: list[str]) -> set[str]:
    """Return the packages that the requirements need, with the dependencies of those that are installed."""
    needed: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        is_new = name not in needed
        needed.add(name)
        try:
            further = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        except importlib.metadata.PackageNotFoundError:
            continue
        extras = [*requirement.extras, *([""] if is_new else [])]
        waiting += [(other, each) for each in extras for other in further]
    return needed


def _triton() -> Finding:
    try:
        install = TritonInstall.find()
    except TritonMissingError as error:
        return Finding("Triton", "not here", str(error))
    version = importlib.metadata.version("nvidia-pytriton")
    missing = install.missing_libraries()
    if missing:
        python = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
        advice = f"apt-get install {python}" if any("libpython" in name for name in missing) else "install them"
        return Finding("Triton", f"lacks {', '.join(missing)}", advice)
    return Finding("Triton", f"server of nvidia-pytriton {version}, Python backend for this Python")


def _environment() -> Finding:
    names = sorted(name for name in os.environ if name.startswith("SCA_") and name not in NOT_SETTINGS)
    return Finding("settings", "defaults" + "".join(f", {name}={_shown(name)}" for name in names))


def _shown(variable: str) -> str:
    return HIDDEN if variable in SECRET_VARIABLES else os.environ[variable]


def _ports(settings: Settings) -> Finding:
    ports = list(needed_ports(settings))
    problems = {port: problem for port in ports if (problem := port.problem())}
    if problems:
        found = ", ".join(f"{port.setting} {port.number} {problem}" for port, problem in problems.items())
        others = " ".join(f"{port.variable}={port.number + 100}" for port in problems)
        return Finding("ports", found, f"stop what uses them (another ./sca serve?), or set others: {others}")
    return Finding("ports", ", ".join(str(port.number) for port in ports) + " are free")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    found = f"{free // 2**20} MiB free in /dev/shm"
    if free < MIN_SHARED_MEMORY:
        return Finding("shared memory", found, f"{MIN_SHARED_MEMORY // 2**20} MiB are needed; docker: --shm-size=1g")
    return Finding("shared memory", found)


def _disk(build: Path) -> Finding:
    existing = next(folder for folder in (build.resolve(), *build.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free for {build}"
    if free < MIN_DISK:
        return Finding("disk", found, f"{MIN_DISK // 2**30} GiB are needed; choose another folder: --build FOLDER")
    return Finding("disk", found)


def _gpu(settings: Settings) -> Finding:
    import torch

    from engine.kernel_compiler import compiler_problem

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
        problem = compiler_problem()
        return Finding("GPU", f"{found}; its kernels cannot be compiled", problem) if problem else Finding("GPU", found)
    set_to_gpu = [
        name
        for name, value in (
            ("qwen.device_map", settings.qwen.device_map),
            ("triton.instance", settings.triton.instance),
        )
        if value.startswith(("cuda", "gpu"))
    ]
    if set_to_gpu:
        return Finding("GPU", f"torch {torch.__version__} finds none", f"set {' and '.join(set_to_gpu)} to cpu or auto")
    return Finding(
        "GPU", "none; the CPU serves the default checkpoint", "for a real checkpoint, use a GPU", fatal=False
    )


def _checkpoint(settings: Settings) -> Finding:
    """Read all small files of the checkpoint and its adapter; the hub is not asked."""
    from engine.checkpoint import check_source
    from engine.checkpoint_files import check_checkpoint
    from engine.errors import CheckpointError
    from export.fetch import HFValidationError, cached_folder

    source, lora = settings.qwen.model_id, settings.qwen.lora
    if source == RANDOM:
        return Finding("checkpoint", "of random weights, made locally")
    found = f"{source or 'the barista, in the repository'}{f' with the adapter {lora}' if lora else ''}"
    remedy = "correct it, or set SCA_QWEN_MODEL_ID to another folder or hub name, or leave it empty"
    try:
        folder = settings.qwen.folder
        if folder is None:
            folder = None if Path(source).exists() else cached_folder(source)
            if folder is None:
                expected = "expected a folder with config.json or a hub name"
                if Path(source).exists():
                    return Finding("checkpoint", f"no checkpoint at {source}, {expected}", remedy)
                return Finding("checkpoint", f"{source} is not in the cache", "serve downloads it", fatal=False)
            try:
                check_checkpoint(folder)
            except CheckpointError as error:
                return Finding("checkpoint", f"the copy in the cache: {error}", "serve downloads the rest", fatal=False)
        check_source(folder, lora)
    except HFValidationError:
        return Finding("checkpoint", f"no checkpoint at {source}: expected a folder or a hub name", remedy)
    except CheckpointError as error:
        return Finding("checkpoint", str(error), remedy)
    return Finding("checkpoint", found)

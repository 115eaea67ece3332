"""Requirements of the compiler of the CUDA kernels.

At the first run of a kernel it compiles a short C file against Python's headers.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

HEADER = "Python.h"


def compiler_problem() -> str:
    """Return what prevents compilation and what to install, or an empty string."""
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        return "no C compiler found (CC, clang or gcc): install gcc"
    folder = sysconfig.get_path("include")
    if not any((Path(path) / HEADER).is_file() for path in (folder, *os.environ.get("CPATH", "").split(":"))):
        version = sysconfig.get_python_version()
        return f"{HEADER} of Python {version} is not in {folder}: install python{version}-dev"
    return ""

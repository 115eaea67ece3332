"""What the compiler of the CUDA kernels needs of a machine: for each kernel it compiles a little C, against Python's
headers, when a server first runs it.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

HEADER = "Python.h"


def compiler_problem() -> str:
    """Why kernels cannot be compiled here, and what to install; empty where they can."""
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        return "no C compiler (CC, clang or gcc) is there: install gcc"
    folder = sysconfig.get_path("include")
    if not any((Path(place) / HEADER).is_file() for place in (folder, *os.environ.get("CPATH", "").split(":"))):
        version = sysconfig.get_python_version()
        return f"{HEADER} of Python {version} is not in {folder}: install python{version}-dev"
    return ""

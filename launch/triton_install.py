"""The Triton server inside the nvidia-pytriton wheel, laid out as tritonserver expects it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


class TritonMissingError(RuntimeError):
    """The pip-installed Triton cannot run here; the message says what to do."""


@dataclass(frozen=True)
class TritonInstall:
    """Where the wheel's parts lie, and the environment that they need."""

    server: Path
    python_backend: Path
    stub: Path
    libraries: Path

    @classmethod
    def find(cls) -> TritonInstall:
        """Looks into the installed wheel. Raises `TritonMissingError`."""
        spec = importlib.util.find_spec("pytriton")
        if spec is None or not spec.submodule_search_locations:
            raise TritonMissingError("nvidia-pytriton is not installed: remove .venv and run ./sca again")
        package = Path(spec.submodule_search_locations[0])
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        install = cls(
            server=package / "tritonserver" / "bin" / "tritonserver",
            python_backend=package / "tritonserver" / "backends" / "python",
            stub=package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub",
            libraries=package.parent / "nvidia_pytriton.libs",
        )
        if not install.stub.is_file():
            raise TritonMissingError(f"the Triton wheel has no Python backend for Python {version}, use 3.10 to 3.13")
        return install

    def environment(self, threads: int = 1) -> dict[str, str]:
        """What tritonserver and its Python processes need on top of ours, each with `threads` of OpenMP."""
        python = Path(sys.executable).parent
        libraries = [str(self.libraries), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
        return {
            "OMP_NUM_THREADS": str(threads),  # said in Python alone, torch's idle threads still cost a third of a tick
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PATH": f"{python}:{os.environ.get('PATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NVIDIA_TF32_OVERRIDE": "0",  # float32 means float32
        }

    def missing_libraries(self) -> list[str]:
        """Shared libraries that the server and the stub need and that are not here."""
        missing = []
        for binary in (self.server, self.stub):
            found = subprocess.run(["ldd", binary], env=self.environment(), capture_output=True, text=True, check=False)
            missing += [line.split()[0] for line in found.stdout.splitlines() if "not found" in line]
        return sorted(set(missing))

    def lay_out(self, folder: Path) -> Path:
        """Fills `folder` with what the server runs on; returns it.

        `backends` holds Triton's Python backend with the stub of this Python, and our ONNX Runtime backend.
        `python` is the server's working directory: its Python processes ignore PYTHONPATH, and look there first.
        """
        shutil.rmtree(folder, ignore_errors=True)
        backends, python = folder / "backends", folder / "python"
        shutil.copytree(self.python_backend, backends / "python")
        shutil.copy2(self.stub, backends / "python")
        (backends / "python" / self.stub.name).chmod(0o755)
        shutil.copytree(
            ROOT / "backends" / "onnxruntime", backends / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__")
        )

        python.mkdir()
        for package in ("config", "contract", "engine"):
            (python / package).symlink_to(ROOT / package)
        for part in (Path(sys.prefix) / "triton_numpy").glob("numpy*"):  # on Python 3.13 alone: see deploy/install.sh
            (python / part.name).symlink_to(part)  # its metadata too, from which others read its version
        return folder

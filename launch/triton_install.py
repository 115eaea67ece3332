"""The Triton server in the nvidia-pytriton wheel, and the folders that tritonserver expects."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from config.secret import SECRET_VARIABLES

ROOT = Path(__file__).parent.parent


class TritonMissingError(RuntimeError):
    """The pip-installed Triton cannot run on this machine; the message contains what to do."""


@dataclass(frozen=True)
class TritonInstall:
    """Paths of the wheel's parts, and the environment variables that they need."""

    server: Path
    python_backend: Path
    stub: Path
    libraries: Path

    @classmethod
    def find(cls) -> TritonInstall:
        """Find the parts in the installed wheel; raise `TritonMissingError` if one is missing."""
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
        """Return the environment of tritonserver and its Python processes, each with `threads` of OpenMP."""
        python = Path(sys.executable).parent
        libraries = [str(self.libraries), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
        return {
            "OMP_NUM_THREADS": str(
                threads
            ),  # torch.set_num_threads does not suffice: idle threads cost a third of a tick
            **{name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PATH": f"{python}:{os.environ.get('PATH', '')}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NVIDIA_TF32_OVERRIDE": "0",  # float32 means float32
        }

    def missing_libraries(self) -> list[str]:
        """Return the shared libraries that the server and the stub need and that are not installed."""
        missing = []
        for binary in (self.server, self.stub):
            found = subprocess.run(["ldd", binary], env=self.environment(), capture_output=True, text=True, check=False)
            missing += [line.split()[0] for line in found.stdout.splitlines() if "not found" in line]
        return sorted(set(missing))

    def lay_out(self, folder: Path) -> Path:
        """Create the server's files in `folder`, and return it.

        `backends` holds Triton's Python backend with the stub of this Python, and our ONNX Runtime backend.
        `python` is the server's working directory: its Python processes ignore PYTHONPATH, and import from it first.
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
        for part in (Path(sys.prefix) / "triton_numpy").glob("numpy*"):  # only on Python 3.13: see deploy/install.sh
            (python / part.name).symlink_to(part)  # also its metadata, for packages that check the version
        return folder

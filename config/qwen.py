"""The section [qwen]: the checkpoint to serve, and how to load it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from config.loader import expect

BARISTA = Path(__file__).parent.parent / "checkpoints" / "barista"  # folder of the default checkpoint
RANDOM = "random"  # model id of a checkpoint of random weights


@dataclass(frozen=True)
class QwenSettings:
    """The checkpoint, its adapter, and the device and data type of its weights."""

    model_id: str
    device_map: str
    torch_dtype: str
    lora: str

    def __post_init__(self) -> None:
        known = self.device_map in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", self.device_map) is not None
        expect(known, "qwen.device_map", self.device_map, "auto, cpu, cuda or cuda:N")
        dtypes = ("auto", "float32", "bfloat16", "float16")
        expect(self.torch_dtype in dtypes, "qwen.torch_dtype", self.torch_dtype, "one of " + ", ".join(dtypes))

    @property
    def folder(self) -> Path | None:
        """Folder of the checkpoint; None for a name on the hub and for random weights."""
        if self.model_id == RANDOM:
            return None
        folder = Path(self.model_id) if self.model_id else BARISTA
        return folder if folder.is_dir() else None

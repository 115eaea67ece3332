"""Checks of a checkpoint's files: everything that can be read in seconds, before any weight is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

MODEL_TYPE = "qwen3_omni_moe"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100 * 2**20  # safetensors refuses longer headers
FLOATS = ("F64", "F32", "F16", "BF16")  # data types of weights that the engine computes with
SMALL_FILES = (  # files that transformers reads if they exist
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # files of a checkpoint on the hub


def check_checkpoint(folder: Path) -> None:
    """Raise `CheckpointError` unless every file in `folder` that serving needs is present, whole and compatible."""
    adapter = " (it contains a LoRA adapter: set qwen.lora to it)" if (folder / "adapter_config.json").is_file() else ""
    config = read_object(
        folder / "config.json", f"no checkpoint at {folder}, expected a folder with config.json or a hub name{adapter}"
    )
    check_config(folder, config)
    for file in (folder / name for name in SMALL_FILES):
        if file.is_symlink() or file.exists():
            expect_content(file)
            if file.suffix == ".json":
                read_json(file)
    _check_tokenizer(folder)
    _check_processor(folder)
    for file, names in sorted(weight_files(folder).items()):
        lacking = sorted(names - set(check_weights(file)))
        if lacking:
            raise CheckpointError(
                f"{file} lacks {lacking[0]} and {len(lacking) - 1} more tensors that {INDEX_FILE} lists: "
                "the index belongs to other files; download or save the checkpoint again"
            )


def check_config(source: str | Path, config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless a config.json describes a Qwen3-Omni that speaks and can be served."""
    found = config.get("model_type")
    if found != MODEL_TYPE:
        raise CheckpointError(f"the checkpoint {source}: expected model type {MODEL_TYPE!r}, got {found!r}")
    talker = config.get("talker_config")
    if not config.get("enable_audio_output", True) or not isinstance(talker, dict):
        raise CheckpointError(
            f"the checkpoint {source} has no talker (enable_audio_output is false or talker_config is missing): "
            "expected a checkpoint that speaks, such as Qwen3-Omni-30B-A3B-Instruct (Thinking and Captioner do not)"
        )
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"the checkpoint {source} is quantized ({method}): expected weights in bfloat16, float16 or float32"
        )
    speakers = talker.get("speaker_id")
    remedy = 'expected names with token ids such as {"ethan": 2302}: copy config.json of the original checkpoint'
    if not isinstance(speakers, dict) or not speakers:
        raise CheckpointError(f"the checkpoint {source}: talker_config.speaker_id has no speakers, {remedy}")
    if wrong := [name for name, code in speakers.items() if not isinstance(code, int) or isinstance(code, bool)]:
        raise CheckpointError(
            f"the checkpoint {source}: talker_config.speaker_id[{wrong[0]!r}] has no number, {remedy}"
        )
    if len({name.lower() for name in speakers}) < len(speakers):
        raise CheckpointError(
            f"the checkpoint {source}: talker_config.speaker_id has names that differ only in capital letters "
            f"({', '.join(speakers)}): voices are chosen without regard to capitals; rename one of them"
        )


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """Return the files with the checkpoint's weights and the tensors that the index lists in each of them.

    Raises `CheckpointError` if there are none, if a listed file is missing, or if two checkpoints are mixed.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if not index.is_file():
        if not single.is_file() and not single.is_symlink():
            other = next(
                (file.name for pattern in ("*.bin", "*.gguf", "*.pt") for file in folder.glob(pattern)), "none"
            )
            raise CheckpointError(
                f"the checkpoint {folder} has neither {SINGLE_FILE} nor {INDEX_FILE} (other weights: {other}): "
                "save it in the safetensors format (save_pretrained)"
            )
        return {single: set()}
    weight_map = read_object(index, "the index is missing").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    files: dict[Path, set[str]] = {}
    for weight, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: expected the name of a file in this folder for {weight}, got {name!r}")
        files.setdefault(folder / name, set()).add(weight)
    if single.is_file() and single not in files:
        raise CheckpointError(
            f"the checkpoint {folder} has {SINGLE_FILE} and an {INDEX_FILE} of other files: the weights of two "
            f"checkpoints would be mixed; move {SINGLE_FILE}, or the index with its files, to another folder"
        )
    for file in files:
        if not file.is_file() and not file.is_symlink():
            raise CheckpointError(f"{file} is missing, but {INDEX_FILE} lists it: download it")
    return files


def expect_content(file: Path) -> None:
    """Raise `CheckpointError` if a file cannot be read, is empty or is the pointer of Git LFS."""
    if file.is_symlink() and not file.exists():
        raise CheckpointError(
            f"{file} is a link to {file.readlink()}, which is missing: mount or copy the hub's whole cache folder "
            "(models--*, with blobs and snapshots), or copy the checkpoint with cp -L"
        )
    try:
        with file.open("rb") as opened:
            begin = opened.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: download it") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if begin == LFS_POINTER:
        raise CheckpointError(f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull in {file.parent}")
    if not begin:
        raise CheckpointError(f"{file} is empty: download it again")


def read_json(file: Path) -> Any:
    """Return the content of a JSON file; raise `CheckpointError` with the file's name."""
    expect_content(file)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}): download it again") from error


def read_object(file: Path, missing: str) -> dict[str, Any]:
    """Return the object in a JSON file; raise `CheckpointError`, with the text `missing` if there is no such file."""
    if not file.is_file() and not file.is_symlink():
        raise CheckpointError(missing)
    found = read_json(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(found).__name__}")
    return found


def check_weights(file: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file; raise `CheckpointError` if the file is not whole."""
    expect_content(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        begin = opened.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{file} is not a whole safetensors file ({size} bytes, the header {length}): download it again"
            )
        try:
            tensors = dict(_tensors(json.loads(opened.read(length))))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file} has a broken safetensors header ({error}): download it again") from error
    expected = 8 + length + max((end for _, end in tensors.values()), default=0)
    if size != expected:
        word = "truncated" if size < expected else "too long"
        raise CheckpointError(f"{file} is {word}: expected {expected} bytes, got {size}; download it again")
    for name, (kind, _) in tensors.items():
        if name.endswith(".weight") and kind not in FLOATS:
            raise CheckpointError(
                f"{file}: {name} has the type {kind}: expected weights in bfloat16, float16 or float32, not quantized"
            )
    return list(tensors)


def _tensors(header: dict[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield name, data type and end offset of each tensor of a header."""
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, (str(tensor["dtype"]), int(tensor["data_offsets"][1]))


def _check_tokenizer(folder: Path) -> None:
    """Raise `CheckpointError` without the files of a tokenizer and its chat template."""
    fast, slow = (folder / "tokenizer.json").is_file(), [folder / "vocab.json", folder / "merges.txt"]
    if not fast and not all(file.is_file() for file in slow):
        raise CheckpointError(
            f"the checkpoint {folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt; "
            "copy the tokenizer's files of the original checkpoint"
        )
    config = read_object(
        folder / "tokenizer_config.json",
        f"{folder / 'tokenizer_config.json'} is missing: copy it from the original checkpoint",
    )
    templates = [folder / "chat_template.json", folder / "chat_template.jinja"]
    if not config.get("chat_template") and not any(file.is_file() for file in templates):
        raise CheckpointError(
            f"the checkpoint {folder} has no chat template: expected one in its tokenizer or in chat_template.json; "
            "copy it from the original checkpoint"
        )


def _check_processor(folder: Path) -> None:
    """Raise `CheckpointError` without the parameters of the audio features."""
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"the checkpoint {folder} has no feature extractor: expected preprocessor_config.json; "
            "copy it from the original checkpoint"
        )

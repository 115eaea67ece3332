"""The small files of a checkpoint are read before its weights; an error names the file and the remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from commands import doctor
from config import Settings
from config.loader import SettingsError
from engine import checkpoint as loading
from engine.checkpoint import load_checkpoint
from engine.errors import CheckpointError
from export.repository import find_checkpoint
from export.triton_config import checkpoint_voices
from export.weights import load_code2wav
from tests.conftest import CPU

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4000000000\n"


@pytest.fixture
def copy(checkpoint_folder, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


def change(folder: Path, name: str = "config.json", section: str = "", **values: Any) -> None:
    """Replace values of a JSON file; remove those that are None."""
    whole = json.loads((folder / name).read_text())
    changed = whole[section] if section else whole
    changed.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del changed[key]
    (folder / name).write_text(json.dumps(whole))


def split(folder: Path) -> None:
    """Save the weights in two files with an index."""
    weights = load_file(folder / WEIGHTS)
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def with_index(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(folder: Path) -> None:
        split(folder)
        spoil(folder)

    return both


def link(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(f"../../blobs/{name}")


def cut(file: Path, end: int) -> None:
    file.write_bytes(file.read_bytes()[:end])


SECOND = "model-00002-of-00002.safetensors"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), f"{WEIGHTS} is a pointer of Git LFS.*run git lfs pull"),
    "pointer of a shard": (with_index(lambda f: (f / SECOND).write_text(POINTER)), f"{SECOND} is a pointer of Git LFS"),
    "pointer of the tokenizer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a pointer"),
    "pointer of the index": (with_index(lambda f: (f / INDEX).write_text(POINTER)), f"{INDEX} is a pointer"),
    "truncated": (
        lambda f: cut(f / WEIGHTS, -1),
        f"{WEIGHTS} is truncated: expected .* bytes, got .*download it again",
    ),
    "truncated shard": (with_index(lambda f: cut(f / SECOND, -1)), f"{SECOND} is truncated"),
    "truncated header": (lambda f: cut(f / WEIGHTS, 50), f"{WEIGHTS} is not a whole safetensors file"),
    "no header": (lambda f: cut(f / WEIGHTS, 5), f"{WEIGHTS} is not a whole safetensors file"),
    "web page": (lambda f: (f / WEIGHTS).write_text("<html>" * 99), f"{WEIGHTS} is not a whole safetensors file"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is empty"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"neither {WEIGHTS} nor {INDEX} .*other weights: none"),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        r"other weights: pytorch_model\.bin.*save it in the safetensors format",
    ),
    "missing shard": (with_index(lambda f: (f / SECOND).unlink()), f"{SECOND} is missing, but {INDEX} lists it"),
    "index of other files": (
        with_index(lambda f: shutil.copy(f / "model-00001-of-00002.safetensors", f / SECOND)),
        f"{SECOND} lacks .*the index belongs to other files",
    ),
    "merged file and old index": (
        with_index(lambda f: shutil.copy(f / SECOND, f / WEIGHTS)),
        "the weights of two checkpoints would be mixed",
    ),
    "index without map": (with_index(lambda f: (f / INDEX).write_text("{}")), f"{INDEX} has no weight_map"),
    "index of folders": (
        with_index(lambda f: (f / INDEX).write_text('{"weight_map": {"x": "../other.safetensors"}}')),
        "expected the name of a file in this folder",
    ),
    "dangling link": (lambda f: link(f, WEIGHTS), f"{WEIGHTS} is a link to ../../blobs.*cp -L"),
    "dangling config": (lambda f: link(f, "config.json"), "config.json is a link to"),
    "dangling tokenizer": (lambda f: link(f, "tokenizer.json"), "tokenizer.json is a link to"),
    "dangling shard": (with_index(lambda f: link(f, SECOND)), f"{SECOND} is a link to"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer: expected tokenizer.json, or vocab"),
    "no tokenizer config": (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read"),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json", 100), "tokenizer.json is not JSON"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "has no feature extractor"),
    "empty processor": (lambda f: (f / "preprocessor_config.json").write_text(""), "preprocessor_config.json is empty"),
    "config of a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json: expected a JSON object, got list",
    ),
    "cut config": (lambda f: cut(f / "config.json", 100), "config.json is not JSON"),
    "impossible config": (lambda f: change(f, "config.json", thinker_config=7), "cannot be read"),
    "adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "contains a LoRA adapter: set qwen.lora",
    ),
    "no speakers": (lambda f: change(f, section="talker_config", speaker_id={}), "speaker_id has no speakers"),
    "speakers null": (lambda f: change(f, section="talker_config", speaker_id=None), "speaker_id has no speakers"),
    "speaker without id": (lambda f: change(f, section="talker_config", speaker_id={"a": "b"}), "has no number"),
    "speakers alike": (
        lambda f: change(f, section="talker_config", speaker_id={"Ethan": 770, "ethan": 771}),
        "differ only in capital letters",
    ),
    "quantized": (
        lambda f: change(f, quantization_config={"quant_method": "awq"}),
        r"is quantized \(awq\): expected weights in bfloat16",
    ),
}


@pytest.fixture
def loads(monkeypatch) -> list[object]:
    """List with an entry for each loading of weights by the engine."""
    loaded: list[object] = []

    class Recorded:
        @staticmethod
        def from_pretrained(source: object, **_: object) -> None:
            loaded.append(source)

    monkeypatch.setattr(loading, "Qwen3OmniMoeForConditionalGeneration", Recorded)
    return loaded


def settings_of(folder: Path, settings: Settings) -> Settings:
    return settings.with_values(qwen={"model_id": str(folder), "lora": ""})


@pytest.mark.parametrize(("spoil", "why"), REFUSED.values(), ids=REFUSED)
def test_broken_file_is_refused_by_engine_export_and_doctor(copy, settings, loads, spoil, why):
    spoil(copy)
    with pytest.raises(CheckpointError, match=why):
        load_checkpoint(copy, CPU)
    assert not loads
    with pytest.raises(CheckpointError, match=why):
        find_checkpoint(settings_of(copy, settings), copy, print)
    found = doctor._checkpoint(settings_of(copy, settings))
    with pytest.raises(CheckpointError, match=why):
        raise CheckpointError(found.found)
    assert found.fatal
    assert found.to_do


def test_shards_with_an_index_are_loaded(copy, checkpoint):
    split(copy)
    loaded = load_checkpoint(copy, CPU).model
    assert all((a == b).all() for a, b in zip(loaded.parameters(), checkpoint.model.parameters(), strict=True))
    assert load_code2wav(str(copy))


def test_other_files_of_a_trainer_are_ignored(copy):
    (copy / "log.json").write_text('{"loss": 1}\n{"loss": 2}\n')
    (copy / "optimizer.safetensors").write_text(POINTER)
    (copy / "notes.txt").write_text("")
    assert loading.check_source(copy) == copy


def test_links_into_a_mounted_cache_are_followed(copy, tmp_path):
    (tmp_path / "blobs").mkdir()
    for file in list(copy.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        (copy / file.name).symlink_to(tmp_path / "blobs" / file.name)
    assert load_checkpoint(copy, CPU).tokenizer


def test_speakers_with_capital_letters_are_voices_in_small_letters(copy):
    change(copy, section="talker_config", speaker_id={"Ethan": 765, "CHELSIE": 766})
    assert load_checkpoint(copy, CPU).model.config.talker_config.speaker_id == {"ethan": 765, "chelsie": 766}
    assert checkpoint_voices(str(copy)) == ["ethan", "chelsie"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": -1, "talker_top_k": -1}, (0, 0)),
        ({"top_k": 0}, (0, 50)),
        ({"top_k": 20.0}, (20, 50)),
        ({"top_k": None}, (20, 50)),
    ],
)
def test_top_k_of_generation_config_is_read(copy, monkeypatch, values, expected):
    (copy / "generation_config.json").write_text(json.dumps(values))
    found = Settings.load(environ={"SCA_QWEN_MODEL_ID": str(copy)}).sampling
    assert (found.text_top_k, found.top_k) == expected


@pytest.mark.parametrize("content", ["[]", "{", POINTER, '{"top_k": -2}', '{"top_p": 7}', '{"temperature": "hot"}'])
def test_error_names_a_generation_config_with_impossible_values(copy, content):
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(SettingsError, match=r"checkpoint/generation_config\.json"):
        Settings.load(environ={"SCA_QWEN_MODEL_ID": str(copy)})


def test_adapter_is_checked_before_the_export(copy, settings, tmp_path):
    wrong = dataclasses.replace(settings.qwen, model_id=str(copy), lora=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"expected a folder with adapter_config\.json"):
        find_checkpoint(dataclasses.replace(settings, qwen=wrong), copy, print)


@pytest.mark.parametrize(("source", "is_fatal"), [("Qwen/never-downloaded", False), ("./no folder/at all", True)])
def test_doctor_reports_a_source_that_is_no_folder(settings, source, is_fatal):
    found = doctor._checkpoint(settings.with_values(qwen={"model_id": source}))
    assert (found.fatal, bool(found.to_do)) == (is_fatal, True)

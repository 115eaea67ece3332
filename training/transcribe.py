"""Transcribes the recorded orders: their labels contain slots only, pocketsphinx finds the words between them.

Each recording is decoded with a grammar made from its label: the opening, the order of size, roast and shots, and the
order of milk and sugar are free, the slots' words are fixed. Writes one line of JSON a recording, and continues an
incomplete run.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pocketsphinx
from tqdm import tqdm

from client.sound import read_sound
from training.alignment import timed_words

OPENINGS = (
    "brew", "can i get", "can i have", "could i get", "get me", "give me", "i would like", "i'd like", "i want",
    "make me", "may i have", "please make me", "brew me", "let me get", "i'll have", "please give me", "please get me",
)  # fmt: skip


def grammar_of(label: dict[str, str]) -> str:
    """Return a JSGF grammar of every sentence that names exactly the slots of `label`."""
    before = [label[slot] for slot in ("size", "roast", "numberOfShots") if slot in label]
    heads = [" ".join([*order, label["coffeeDrink"]]) for order in itertools.permutations(before)]
    additions = [label[slot] for slot in ("milkAmount", "sugarAmount") if slot in label]
    tails = [" and ".join(order) for order in itertools.permutations(additions)]
    tail = f" with [a] ( {' | '.join(tails)} )" if additions else ""
    return (
        "#JSGF V1.0;\ngrammar order;\n"
        f"public <order> = [ {' | '.join(OPENINGS)} ] [ a | an | some ] ( {' | '.join(heads)} ){tail} [ please ];\n"
    )


def transcribe(samples: bytes, label: dict[str, str], beam: float) -> list[tuple[str, float, float]]:
    """Return words of a recording (PCM16, 16 kHz) with begin and end in seconds; empty if no sentence matches."""
    decoder = pocketsphinx.Decoder(
        lm=None, beam=beam, wbeam=beam * 1e6, pbeam=beam, loglevel="FATAL", bestpath=False, fsgusefiller=True
    )
    decoder.add_jsgf_string("order", grammar_of(label))
    decoder.activate_search("order")
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    return timed_words(decoder)


def main() -> None:
    """Run the program that the module describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of recordings with labels.json")
    parser.add_argument("out", type=Path, help="file of JSON lines to write")
    parser.add_argument("--beam", type=float, default=1e-48)
    parser.add_argument("--part", default="0/1", help="subset of the recordings: INDEX/COUNT")
    args = parser.parse_args()
    labels = json.loads((args.folder / "labels.json").read_text())
    index, count = map(int, args.part.split("/"))
    done = {json.loads(line)["file"] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    with args.out.open("a") as out:
        for name in tqdm(sorted(labels)[index::count]):
            if name in done:
                continue
            sound = read_sound(args.folder / name)
            sound = sound / max(1e-4, abs(sound).max()) * 0.7
            words = transcribe((sound * 32767).astype("int16").tobytes(), labels[name], args.beam)
            out.write(json.dumps({"file": name, "label": labels[name], "words": words}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()

"""Command acceptance of spoken orders, as Picovoice's speech-to-intent benchmark counts it: all slots right, or not.

An answer is read for what it states, its sentences that do not end in a question mark: they have to name exactly the
label's slots with the label's values. "lots of" is "a lot of", "a little bit of" is "a bit of", "some milk" is "milk".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DRINKS = ("coffee", "drip coffee", "iced coffee", "house coffee", "mocha", "iced mocha", "latte", "espresso",
          "americano", "cappuccino")  # fmt: skip
SIZES = ("small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce", "twenty ounce")
ROASTS = ("light roast", "medium roast", "dark roast")
SHOTS = ("single shot", "double shot", "triple shot")
MILKS = ("milk", "cream", "whole milk", "skim milk", "soy milk", "almond milk")
SUGARS = ("sugar", "brown sugar", "sweetener")
SLOTS = {"coffeeDrink": DRINKS, "size": SIZES, "roast": ROASTS, "numberOfShots": SHOTS, "milkAmount": MILKS,
         "sugarAmount": SUGARS}  # fmt: skip
SLOT_OF = {value: slot for slot, values in SLOTS.items() for value in values}
AMOUNT = r"(?:(a lot of|a bit of) )?"
VALUE = re.compile(rf"\b{AMOUNT}({'|'.join(sorted(SLOT_OF, key=len, reverse=True))})\b")


def named_slots(answer: str) -> set[tuple[str, str]]:
    """The slots and values that an answer states."""
    statements = [s for s in re.findall(r"[^.!?]+[.!?]?", answer) if not s.endswith("?")]
    found = set()
    for statement in statements:
        for amount, value in VALUE.findall(plain(statement)):
            slot = SLOT_OF[value]
            found.add((slot, f"{amount} {value}" if amount and slot in ("milkAmount", "sugarAmount") else value))
    return found


def is_accepted(answer: str, label: Mapping[str, str]) -> bool:
    """Whether an answer states exactly the slots of `label`, in Picovoice's words."""
    return named_slots(answer) == label_slots(label)


def label_slots(label: Mapping[str, str]) -> set[tuple[str, str]]:
    """The slots and values of a label, in the words that answers are compared by."""
    return {(slot, plain(value)) for slot, value in label.items()}


def plain(text: str) -> str:
    """Words as they are compared: "lots of" is "a lot of", "a little bit of" is "a bit of", "some X" is "X"."""
    text = " ".join(text.lower().replace(",", " ").split())
    return text.replace("lots of", "a lot of").replace("a little bit of", "a bit of").replace("some ", "")

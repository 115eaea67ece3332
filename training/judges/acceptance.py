"""Acceptance of spoken orders, counted as in Picovoice's speech-to-intent benchmark: all slots right, or rejected.

Only the statements of an answer count, which are the sentences that do not end in a question mark: they have to name
exactly the label's slots with the label's values. "lots of" equals "a lot of", "a little bit of" equals "a bit of", and
"some milk" equals "milk".
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


def stated_slots(answer: str) -> set[tuple[str, str]]:
    """Return the (slot, value) pairs that an answer states."""
    statements = [s for s in re.findall(r"[^.!?]+[.!?]?", answer) if not s.endswith("?")]
    slots = set()
    for statement in statements:
        for amount, value in VALUE.findall(normalize(statement)):
            slot = SLOT_OF[value]
            slots.add((slot, f"{amount} {value}" if amount and slot in ("milkAmount", "sugarAmount") else value))
    return slots


def is_accepted(answer: str, label: Mapping[str, str]) -> bool:
    """Return whether an answer states exactly the slots of `label`, in Picovoice's words."""
    return stated_slots(answer) == label_slots(label)


def label_slots(label: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return a label's (slot, value) pairs with normalized values."""
    return {(slot, normalize(value)) for slot, value in label.items()}


def normalize(text: str) -> str:
    """Return lower-case words with one form for each amount: "a lot of", "a bit of", and no "some"."""
    text = " ".join(text.lower().replace(",", " ").split())
    return text.replace("lots of", "a lot of").replace("a little bit of", "a bit of").replace("some ", "")

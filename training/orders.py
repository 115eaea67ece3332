"""Orders: slots, wordings, and changes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from training.judges.acceptance import DRINKS, MILKS, ROASTS, SHOTS, SIZES, SUGARS

SLOTS = ("size", "roast", "numberOfShots", "coffeeDrink", "milkAmount", "sugarAmount")
AMOUNTS = ("", "", "", "a bit of ", "a lot of ")  # wording of the answers
SPOKEN_AMOUNTS = {
    "": ("", "", "some "),
    "a bit of ": ("a bit of ", "a little bit of ", "a little "),
    "a lot of ": ("a lot of ", "lots of ", "lots of "),
}


def article(words: str) -> str:
    """Return `words` with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


@dataclass(frozen=True, slots=True)
class Order:
    """Known slots of an order: the benchmark's names, values in the wording of an answer."""

    slots: dict[str, str] = field(default_factory=dict)

    def changed(self, slots: dict[str, str], removed: tuple[str, ...] = ()) -> Order:
        """Return the order with `slots` replaced and `removed` deleted."""
        kept = {slot: value for slot, value in self.slots.items() if slot not in removed}
        return replace(self, slots={**kept, **slots})

    def phrase(self) -> str:
        """Return the order as a noun phrase: "a large dark roast latte with soy milk"."""
        head = [self.slots[slot] for slot in ("size", "roast", "numberOfShots") if slot in self.slots]
        head.append(self.slots.get("coffeeDrink", "drink"))
        additions = [self.slots[slot] for slot in ("milkAmount", "sugarAmount") if slot in self.slots]
        tail = " with " + " and ".join(additions) if additions else ""
        return article(" ".join(head)) + tail


def random_slots(draw: random.Random, count: int | None = None, drink: bool = True) -> dict[str, str]:
    """Return the slots of a random order, `count` of them in addition to the drink."""
    count = count if count is not None else draw.choices(range(6), weights=(2, 6, 10, 8, 4, 2))[0]
    chosen = draw.sample(["size", "roast", "numberOfShots", "milkAmount", "sugarAmount"], count)
    slots = {slot: random_value(draw, slot) for slot in SLOTS if slot in chosen}
    if drink:
        slots["coffeeDrink"] = draw.choice(DRINKS)
    return slots


def random_value(draw: random.Random, slot: str) -> str:
    """Return a random value of one slot, in the wording of an answer."""
    match slot:
        case "size":
            return draw.choice(SIZES)
        case "roast":
            return draw.choice(ROASTS)
        case "numberOfShots":
            return draw.choice(SHOTS)
        case "milkAmount":
            return draw.choice(AMOUNTS) + draw.choice(MILKS)
        case "sugarAmount":
            return draw.choice(AMOUNTS) + draw.choice(SUGARS)
    return draw.choice(DRINKS)


def spoken_value(draw: random.Random, slot: str, value: str) -> str:
    """Return a slot's value in one of its spoken wordings."""
    if slot in ("milkAmount", "sugarAmount"):
        amount = next(amount for amount in ("a bit of ", "a lot of ", "") if value.startswith(amount))
        return draw.choice(SPOKEN_AMOUNTS[amount]) + value[len(amount) :]
    return value


def spoken_order(draw: random.Random, slots: dict[str, str]) -> str:
    """Return a noun phrase that names `slots`, in one of its spoken wordings, with its article."""
    before = [slots[slot] for slot in ("size", "roast", "numberOfShots") if slot in slots]
    draw.shuffle(before)
    additions = [spoken_value(draw, slot, slots[slot]) for slot in ("milkAmount", "sugarAmount") if slot in slots]
    draw.shuffle(additions)
    drink = slots["coffeeDrink"]
    style = draw.random()
    if "numberOfShots" in slots and style < 0.1:  # "a latte with two shots"
        before.remove(slots["numberOfShots"])
        count = {"single shot": "one shot", "double shot": "two shots", "triple shot": "three shots"}
        additions.insert(draw.randrange(len(additions) + 1), count[slots["numberOfShots"]])
    elif "size" in slots and "coffeeDrink" in slots and style < 0.16 and not additions:  # "a latte, large"
        before.remove(slots["size"])
        return article(" ".join([*before, drink])) + ", " + slots["size"]
    joined = additions[0] if additions else ""
    for addition in additions[1:]:
        joined += draw.choice((" and ", " and ", " and with ", ", ")) + addition
    phrase = article(" ".join([*before, drink]))
    if draw.random() < 0.05:
        phrase = phrase.replace("an ", "a ", 1)
    return phrase + (" with " + joined if joined else "")

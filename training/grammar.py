"""Grammar of orders in a coffee shop: users' utterances with their meaning, and the barista's answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from config.loader import read_toml
from training.orders import Order, article, random_slots, random_value, spoken_order, spoken_value

SENTENCES = read_toml(Path(__file__).parent / "sentences.toml")  # sentences by meaning


@dataclass(frozen=True, slots=True)
class Utterance:
    """A user's utterance and its meaning: `kind` is the dialogue act, `slots` and `removed` its content."""

    text: str
    kind: str
    slots: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


def utterance(draw: random.Random, kind: str) -> Utterance:
    """Return a random utterance of one kind."""
    match kind:
        case "order":
            return make_order(draw, random_slots(draw))
        case "another":
            slots = random_slots(draw, count=draw.randrange(3))
            opening, closing = draw.choice(SENTENCES["another"]), draw.choice(SENTENCES["closings"])
            return Utterance(f"{opening} {spoken_order(draw, slots)}{closing}", kind, slots)
        case "change":
            return make_change(draw)
        case "size":
            value = random_value(draw, "size")
            form = draw.choice(SENTENCES["size"])
            return Utterance(form.format(value), "change", {"size": value})
        case "resize":
            value = random_value(draw, "size")
            form = draw.choice(SENTENCES["resize"])
            return Utterance(form.format(value, a=article(value)), "change", {"size": value})
        case "roast":
            value = random_value(draw, "roast")
            form = draw.choice(SENTENCES["roast"])
            return Utterance(form.format(value), "change", {"roast": value})
        case "other":
            return Utterance(draw.choice(SENTENCES["other"]).format(draw.choice(SENTENCES["other_subjects"])), kind)
    return Utterance(draw.choice(SENTENCES[kind]), kind)


def make_order(draw: random.Random, slots: dict[str, str]) -> Utterance:
    """Return an order for `slots`, half of the time in the wording of the benchmark's speakers."""
    if draw.random() < 0.55:
        opening = draw.choice(SENTENCES["openings"])
        return Utterance(f"{opening} {spoken_order(draw, slots)}", "order", slots)
    opening, phrase = draw.choice(SENTENCES["more_openings"]), spoken_order(draw, slots)
    if draw.random() < 0.1:
        phrase = phrase.split(" ", 1)[1]
    closing = draw.choice(SENTENCES["closings"])
    return Utterance(f"{opening} {phrase}{closing}".strip(), "order", slots)


def make_change(draw: random.Random) -> Utterance:
    """Return a change of one or two slots, or the removal of milk or sugar."""
    variant = draw.random()
    if variant < 0.33:
        slot, thing = draw.choice((("milkAmount", "milk"), ("sugarAmount", "sugar"), ("milkAmount", "cream"),
                                   ("sugarAmount", "sweetener")))  # fmt: skip
        form = draw.choice(SENTENCES["remove"])
        return Utterance(form.format(thing), "change", removed=(slot,))
    if variant < 0.5:
        value = random_value(draw, "coffeeDrink")
        form = draw.choice(SENTENCES["change_drink"])
        return Utterance(form.format(article(value)), "change", {"coffeeDrink": value})
    slots = [draw.choice(("size", "size", "roast", "numberOfShots", "milkAmount", "sugarAmount"))]
    if draw.random() < 0.2:
        slots = draw.sample(("size", "roast", "numberOfShots", "milkAmount", "sugarAmount"), 2)
    values = {slot: random_value(draw, slot) for slot in slots}
    spoken = " and ".join(spoken_value(draw, slot, value) for slot, value in values.items())
    if all(slot in ("milkAmount", "sugarAmount") for slot in slots):
        form = draw.choice(SENTENCES["change_addition"])
    else:
        form = draw.choice(SENTENCES["change_other"])
    return Utterance(form.format(spoken), "change", values)


def openings(slot: str) -> list[str]:
    """Return the texts before the value in a change of a slot: "make it", "with"."""
    forms = {"coffeeDrink": "change_drink", "milkAmount": "change_addition", "sugarAmount": "change_addition"}
    prefixes = [form for form in SENTENCES[forms.get(slot, "change_other")] if form.endswith(" {}")]
    return [form.removesuffix(" {}") for form in prefixes]


@dataclass(slots=True)
class Barista:
    """The barista's state and answers. An answer repeats the whole order and then asks one question."""

    order: Order | None = None
    first: Order | None = None  # the order before "another"

    def answer(self, utterance: Utterance) -> str:
        """Return the answer to one utterance; "" to noise."""
        match utterance.kind:
            case "order":
                self.first, self.order = None, Order(dict(utterance.slots))
                return f"Okay, {self.order.phrase()}. {self._question()}"
            case "another":
                self.first, self.order = self.order, Order(dict(utterance.slots))
                return f"Okay, {'also ' if self.first else ''}{self.order.phrase()}. {self._question()}"
            case "change":
                if self.order is None and not utterance.slots:
                    return "You have no order yet. What would you like?"
                self.order = (self.order or Order()).changed(utterance.slots, utterance.removed)
                if "coffeeDrink" not in self.order.slots:
                    return f"Okay, {self.order.phrase()}. Which drink would you like?"
                return f"Sure, {self.order.phrase()}. {self._question()}"
            case "query":
                if self.order is None:
                    return "You have no order yet. What would you like?"
                if self.first is not None:
                    return f"You ordered {self.first.phrase()}, and {self.order.phrase()}."
                return f"You ordered {self.order.phrase()}."
            case "cancel":
                had, self.order, self.first = self.order is not None, None, None
                return "Okay, I cancelled your order. What would you like?" if had else (
                    "You have no order yet. What would you like?")  # fmt: skip
            case "done":
                if self.order is None:
                    return "All right. Tell me when you want to order."
                return "Thank you. Your order will be ready soon."
            case "hello":
                return "Hello. What would you like to drink?"
            case "who":
                return "I am the barista. Tell me what you would like to drink."
            case "menu":
                return "We have coffee, espresso, latte, mocha, cappuccino and americano."
            case "hear":
                return "Yes, I can hear you. What would you like?"
            case "thanks":
                return "You are welcome."
            case "bye":
                return "Goodbye. Have a nice day."
            case "noise":
                return ""
        return "Sorry, I did not understand that."

    def _question(self) -> str:
        assert self.order is not None
        if "size" not in self.order.slots:
            return "What size would you like?"
        if "roast" not in self.order.slots:
            return "Which roast would you like?"
        return "Anything else?"


def next_kind(draw: random.Random, barista: Barista) -> str:
    """Draw the kind of a user's next utterance from the state of the conversation."""
    if barista.order is None:
        return draw.choices(
            ("order", "hello", "who", "menu", "hear", "other", "query", "cancel", "change", "thanks", "bye", "done"),
            weights=(50, 5, 4, 4, 4, 8, 3, 2, 3, 2, 2, 2),
        )[0]
    question = (
        "size" if "size" not in barista.order.slots else "roast" if "roast" not in barista.order.slots else "done"
    )
    kinds = ["change", "resize", "query", "cancel", "done", "order", "another", "other", "thanks", "bye", "hear"]
    kinds += ["menu", question]
    weights = [25, 8, 16, 5, 8, 8, 6 if barista.first is None else 0, 5, 4, 3, 2, 2, 20]
    return draw.choices(kinds, weights=weights)[0]

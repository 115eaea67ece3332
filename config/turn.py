"""The section [turn]: the start and the end of a user's turn, and the length of an answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from config.loader import expect, listed

DETECTIONS = ("server_vad", "manual")
SERVER_ONLY = ("heard_tokens_per_s", "emotion_labels", "language_labels")  # settings that are no conversation's option


@dataclass(frozen=True)
class TurnSettings:
    """Parameters of the dialect `turn`."""

    detection: str
    threshold: float
    prefix_padding_ms: int
    silence_duration_ms: int
    create_response: bool
    interrupt: bool
    interrupt_after_ms: int
    speech: bool
    answer_tokens: int
    answer_frames: int
    heard_tokens_per_s: float
    emotion: str
    emotion_labels: str
    language: str
    language_labels: str

    def __post_init__(self) -> None:
        expect(self.detection in DETECTIONS, "turn.detection", self.detection, " or ".join(DETECTIONS))
        expect(0 < self.threshold < 1, "turn.threshold", self.threshold, "a probability between 0 and 1")
        for name, limit in (("prefix_padding_ms", 5000), ("silence_duration_ms", 10_000), ("interrupt_after_ms", 5000)):
            value = getattr(self, name)
            expect(0 <= value <= limit, f"turn.{name}", value, f"milliseconds, 0 to {limit}")
        for name in ("answer_tokens", "answer_frames"):
            expect(2 <= getattr(self, name) < 1e6, f"turn.{name}", getattr(self, name), "a number from 2 to a million")
        rate = self.heard_tokens_per_s
        expect(0 < rate <= 12.5, "turn.heard_tokens_per_s", rate, "a number above 0 and up to 12.5, one a codec frame")
        for name in ("emotion", "language"):
            known = self.labels(name)
            expect(len(known) > 1, f"turn.{name}_labels", getattr(self, f"{name}_labels"), "labels, at least two")
            strange = [label for label in self.selected_labels(name) if label not in known]
            expect(not strange, f"turn.{name}", getattr(self, name), f"off, all, or some of {', '.join(known)}")
            expect(
                len(self.selected_labels(name)) != 1,
                f"turn.{name}",
                getattr(self, name),
                "off, all, or at least two labels",
            )

    def labels(self, name: str) -> tuple[str, ...]:
        """Return all labels that are configured for `emotion` or `language`."""
        return listed(getattr(self, f"{name}_labels"))

    def selected_labels(self, name: str) -> tuple[str, ...]:
        """Return the labels among which the model chooses; empty if the classification is off."""
        chosen: str = getattr(self, name)
        if chosen in ("", "off"):
            return ()
        return self.labels(name) if chosen == "all" else listed(chosen)


TURN_OPTIONS = tuple(field.name for field in dataclasses.fields(TurnSettings) if field.name not in SERVER_ONLY)

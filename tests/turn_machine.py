"""The state machine of a conversation in the dialect `turn` with a toy chat template, for tests without a model."""

from __future__ import annotations

from dataclasses import replace

from config import Settings
from config.options import Options
from config.settings import TurnSettings
from contract.controls import Controls
from engine.turn.actions import TurnConfig
from engine.turn.conversation import TurnConversation
from engine.turn.history import Answer, Entry, History

TICK = 32  # log-mel frames
TICK_MS = 320
SPEECH, SILENCE = [0.9] * 10, [0.0] * 10  # probabilities of the ten windows of 32 ms in a tick
AUDIO, END = 7, 2
OPENING = [3, 4, 5]  # tokens that open an answer


class Chat:
    """A chat template of few tokens; a character of text is a token."""

    audio, end = AUDIO, END
    answer_opening, before_audio, after_audio = OPENING, [10], [11]
    user_opening, close = [12, 13], [END, 14]

    def typed(self, text: str, after_audio: bool = False) -> list[int]:
        return [20] * len(text) if after_audio else [12, *[20] * len(text)]

    def message(self, role: str, text: str) -> list[int]:
        return [12, *[21] * len(text), *self.close]


class Words:
    """A detokenizer of one word per token."""

    def feed(self, tokens) -> str:
        return "".join(f"w{token} " for token in tokens if token != END)


CONFIG = TurnConfig(
    chat=Chat(),
    decode=lambda tokens: " ".join(map(str, tokens)),
    detokenizer=Words,
    audio_tokens=lambda frames: frames // 8,
    window_frames=800,
    thinker_positions=2000,
    talker_positions=1900,
    frames_per_tick=4,
    codebooks=16,
    codebook_size=512,
    heard_tokens_per_s=3.5,
    stops_when_full=False,
    expect_possible=lambda _: None,
)


def conversation(config: TurnConfig = CONFIG, report_state: bool = False, **turn) -> TurnConversation:
    settings = Settings.load(environ={})
    chosen: TurnSettings = replace(settings.turn, **turn)
    options = Options("ethan", "", settings.sampling, chosen, 0, report_state)
    return TurnConversation(0, options, config, [])


def advance(one: TurnConversation, count: int = 1, probabilities=SILENCE, **controls) -> list[str]:
    """Advance by `count` ticks with the controls on the last one; return the types of events except `committed`."""
    kinds: list[str] = []
    for number in range(count):
        of_tick = Controls(**controls) if number == count - 1 else Controls()
        one.advance(TICK, of_tick, probabilities)
        kinds += [event.type for event in one.events if event.type != "committed"]
    return kinds


def prefill_all(one: TurnConversation) -> list[int]:
    """Prefill all that is queued; return the number of tokens of each chunk."""
    lengths = []
    while prefill := one.next_prefill():
        lengths.append(len(prefill.chunk.tokens))
    return lengths


def answer(one: TurnConversation, ticks: int) -> None:
    """Decode `ticks` ticks of an answer that does not end."""
    for _ in range(ticks):
        assert one.next_decode()
        one.decoded([30, 31, 32, 33], [1, 2, 3, 4])


def answer_of(history: History, turn: int) -> Answer:
    """Return the answer of a turn."""
    return next(entry for entry in history.of(turn) if isinstance(entry, Answer))


def entries_of(history: History) -> list[type[Entry]]:
    """Return the kinds of the entries, oldest first."""
    return [type(entry) for entry in history.entries]


def expect_lengths(history: History) -> None:
    """Assert that the length of each cache is the sum of its entries."""
    assert history.thinker_length == history.prompt + sum(entry.thinker for entry in history.entries)
    assert history.talker_length == sum(entry.talker for entry in history.entries)
    assert all(entry.talker == (entry.thinker if entry.reaches_talker else 0) for entry in history.entries)
    assert all(entry.thinker >= 0 for entry in history.entries)

"""The chat template as tokens: what stands around a user's sound and text, and around an answer."""

from __future__ import annotations

from typing import Any

from engine.errors import CheckpointError

PROBE = "x"  # an answer that marks its place


class ChatTemplate:
    """The pieces of a conversation, cut out of what the checkpoint's own chat template writes.

    Raises `CheckpointError` for a template in which a turn is not im_start, role, content, im_end.
    """

    def __init__(self, tokenizer: Any, config: Any):
        self._tokenizer = tokenizer
        self.audio: int = config.thinker_config.audio_token_id
        self.end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")  # of a turn; the thinker's end of text
        start: int = config.im_start_token_id

        spoken = [{"role": "user", "content": [{"type": "audio", "audio": ""}]}]
        rendered, asked = self._render(spoken), self._render(spoken, answer=True)
        answered = self._render([*spoken, {"role": "assistant", "content": PROBE}])
        probe = self._encode(PROBE)
        try:
            place = rendered.index(self.audio)
            close = rendered.index(self.end, place)
            self.answer_opening = asked[len(rendered) :]  # <|im_start|>assistant\n
            self.before_audio = [rendered[place - 1]]  # <|audio_start|>
            self.after_audio = rendered[place + 1 : close]  # <|audio_end|>
            opening = max(i for i, token in enumerate(rendered[:place]) if token == start)
            self._default_system = rendered[:opening]  # what the template writes where there is no system prompt
            self.user_opening = rendered[opening : place - 1]  # <|im_start|>user\n
            self.close = rendered[close:]  # <|im_end|>\n, of any turn
            expected = [*rendered, *self.answer_opening, *probe, *self.close]
        except ValueError:
            expected = []
        if answered != expected or len(self.answer_opening) != 3 or len(self.user_opening) != 3:
            raise CheckpointError(
                "the checkpoint's chat template is not Qwen3-Omni's: a turn is expected to be <|im_start|>, a role and "
                f"a line's end, its content, <|im_end|> and a line's end; it writes {answered}"
            )

    def system(self, prompt: str) -> list[int]:
        """The system prompt's turn; for an empty one the template's own, mostly nothing."""
        return self._render([{"role": "system", "content": prompt}]) if prompt else list(self._default_system)

    def typed(self, text: str, after_audio: bool = False) -> list[int]:
        """A user's typed text, and before it, unless it follows sound, the opening of the turn.

        What looks like a special token in it is mere text.
        """
        if after_audio:
            return self._encode(text)
        header = self._tokenizer.decode(self.user_opening[1:])  # tokens may join its line's end and the text
        return [self.user_opening[0], *self._encode(header + text)]

    def message(self, role: str, text: str) -> list[int]:
        """A whole message in the assistant's or the system's name, as the template writes it into a history."""
        return [self.user_opening[0], *self._encode(f"{role}\n{text}"), *self.close]

    def spell(self, word: str) -> list[int]:
        """An answer that is one word, its end included."""
        return [*self._encode(word), self.end]

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return tokens

    def _render(self, messages: list[dict[str, Any]], answer: bool = False) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

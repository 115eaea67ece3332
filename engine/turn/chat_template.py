"""The chat template as tokens: the tokens around a user's audio and text, and around an answer."""

from __future__ import annotations

from typing import Any

from engine.errors import CheckpointError

PROBE = "x"  # text of an answer whose position is searched


class ChatTemplate:
    """The pieces of a conversation, extracted from the output of the checkpoint's own chat template.

    Raises `CheckpointError` for a template in which a turn is not im_start, role, content, im_end.
    """

    def __init__(self, tokenizer: Any, config: Any):
        self._tokenizer = tokenizer
        self.audio: int = config.thinker_config.audio_token_id
        self.end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")  # end of a turn, and the thinker's end of text
        start: int = config.im_start_token_id

        spoken = [{"role": "user", "content": [{"type": "audio", "audio": ""}]}]
        rendered, requested = self._render(spoken), self._render(spoken, answer=True)
        answered = self._render([*spoken, {"role": "assistant", "content": PROBE}])
        probe = self._encode(PROBE)
        try:
            place = rendered.index(self.audio)
            close = rendered.index(self.end, place)
            self.answer_opening = requested[len(rendered) :]  # <|im_start|>assistant\n
            self.before_audio = [rendered[place - 1]]  # <|audio_start|>
            self.after_audio = rendered[place + 1 : close]  # <|audio_end|>
            opening = max(i for i, token in enumerate(rendered[:place]) if token == start)
            self._default_system = rendered[:opening]  # output of the template for an empty system prompt
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
        """Return the turn of a system prompt; for an empty one the template's own, usually no tokens."""
        return self._render([{"role": "system", "content": prompt}]) if prompt else list(self._default_system)

    def typed(self, text: str, after_audio: bool = False) -> list[int]:
        """Return a user's typed text, with the opening of the turn before it unless it follows audio.

        Special tokens that are spelled in the text are encoded as ordinary text.
        """
        if after_audio:
            return self._encode(text)
        header = self._tokenizer.decode(self.user_opening[1:])  # tokens may join its line's end and the text
        return [self.user_opening[0], *self._encode(header + text)]

    def message(self, role: str, text: str) -> list[int]:
        """Return a whole message in the assistant's or the system's name, as the template writes it into a history."""
        return [self.user_opening[0], *self._encode(f"{role}\n{text}"), *self.close]

    def spell(self, word: str) -> list[int]:
        """Return the tokens of an answer that is one word, its end included."""
        return [*self._encode(word), self.end]

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return tokens

    def _render(self, messages: list[dict[str, Any]], answer: bool = False) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

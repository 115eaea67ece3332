"""The client's events as validated requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator, model_validator

from config.settings import MAX_PROMPT_CHARACTERS, MAX_TYPED
from contract.controls import Role
from contract.errors import ErrorCode
from frontend.realtime.events import Event
from frontend.realtime.session_changes import Format, Modality, OutputTokens, from_beta
from frontend.realtime.validation import Instructions, Model, Natural, Optional, Text, UnmetError, text

ROOT = "root"  # the place before the first item, as a `previous_item_id`
MAX_ITEM_ID = 64  # characters
MAX_PARTS = 16  # parts of an item
MAX_CHARACTERS = {Role.USER: MAX_TYPED, Role.ASSISTANT: MAX_PROMPT_CHARACTERS, Role.SYSTEM: MAX_PROMPT_CHARACTERS}
MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE = 16, 64, 512  # entries, and characters of each
TEXT_PARTS = ("input_text", "output_text", "text")
ASSISTANT_AUDIO_PARTS = ("output_audio", "audio")
USER_AUDIO_PART = "input_audio"


class UpdateSession(Model):
    """`session.update`."""

    session: Annotated[dict[str, Any], Optional] = Field(default_factory=dict)


class AppendAudio(Model):
    """`input_audio_buffer.append`."""

    audio: Any = None  # base64, which the decoder validates


class Content(NamedTuple):
    """The content of a new item."""

    parts: list[Event]
    audio: list[Any]  # base64 of a user's audio, which the decoder validates

    @property
    def text(self) -> str:
        """The text, without what a user has spoken."""
        return text_of(self.parts)


class NewItem(Model):
    """A message that a client adds."""

    id: str | None = None
    type: Literal["message"]
    role: Role
    content: Content

    @field_validator("id", mode="before")
    @classmethod
    def _check_id(cls, value: Any) -> Any:
        if value is not None and not 0 < len(text(value)) <= MAX_ITEM_ID:
            raise UnmetError(f"text of 1 to {MAX_ITEM_ID} characters")
        if value == ROOT:
            raise UnmetError(f"another id: {ROOT!r} is the place before the first item")
        return value

    @field_validator("role", mode="before")
    @classmethod
    def _check_role(cls, value: Any) -> Role:
        try:
            return Role(value)
        except ValueError:
            raise UnmetError(f"one of {', '.join(role.value for role in Role)}") from None

    @field_validator("content", mode="before")
    @classmethod
    def _check_content(cls, value: Any, info: ValidationInfo) -> Content:
        role = info.data.get("role", Role.USER)
        if not isinstance(value, list) or len(value) > MAX_PARTS:
            raise UnmetError(f"a list of at most {MAX_PARTS} parts")
        content = Content([_part(part, role) for part in value], [])
        content.audio.extend(part.get("audio") for part in value if part.get("type") == USER_AUDIO_PART)
        if not content.audio and not content.text:
            raise UnmetError("text or audio")
        if len(content.text) > MAX_CHARACTERS[role]:
            expected = f"at most {MAX_CHARACTERS[role]} characters of text"
            raise UnmetError(expected, ErrorCode.STRING_ABOVE_MAX_LENGTH, f"{len(content.text)} characters")
        return content


class CreateItem(Model):
    """`conversation.item.create`."""

    item: NewItem
    previous_item_id: Any = None


class RetrieveItem(Model):
    """`conversation.item.retrieve`."""

    item_id: Text


class DeleteItem(Model):
    """`conversation.item.delete`."""

    item_id: Text


class TruncateItem(Model):
    """`conversation.item.truncate`."""

    item_id: Text
    content_index: Natural
    audio_end_ms: Natural


class ResponseOutput(Model):
    """The audio of one response."""

    format: Format = None


class ResponseAudio(Model):
    """The audio of one response, by side."""

    output: Annotated[ResponseOutput, Optional] = ResponseOutput()


class ResponseRequest(Model):
    """The options of a response that a client requests; None: as the session has it."""

    conversation: Literal["auto", "none"] = "auto"
    input: None = None
    instructions: Instructions = ""
    metadata: dict[str, Any] | None = None  # is returned unchanged
    output_modalities: Modality | None = None
    max_output_tokens: OutputTokens | None = None
    audio: Annotated[ResponseAudio, Optional] = ResponseAudio()

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, wanted: Any) -> Any:
        if not isinstance(wanted, dict):
            return wanted
        return {name: value for name, value in from_beta(wanted).items() if value is not None}

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_input(cls, value: Any) -> None:
        raise UnmetError("no separate input: a response answers the whole conversation")

    @field_validator("metadata", mode="before")
    @classmethod
    def _check_metadata(cls, value: Any) -> Any:
        is_text = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        if (
            not is_text
            or len(value) > MAX_METADATA
            or any(len(name) > MAX_METADATA_NAME or len(each) > MAX_METADATA_VALUE for name, each in value.items())
        ):
            expected = f"an object of at most {MAX_METADATA} texts of {MAX_METADATA_VALUE} characters"
            raise UnmetError(f"{expected}, with names of {MAX_METADATA_NAME}")
        return value

    @property
    def is_out_of_band(self) -> bool:
        """True if the conversation keeps nothing of the response."""
        return self.conversation == "none"


class CreateResponse(Model):
    """`response.create`."""

    response: Annotated[ResponseRequest, Optional] = ResponseRequest()


class CancelResponse(Model):
    """`response.cancel`; without an id the conversation's response is cancelled."""

    response_id: Any = None


class NoFields(Model):
    """An event without fields."""


def text_of(parts: list[Event]) -> str:
    """Return the text and the transcripts of an item's parts."""
    return "\n".join(part.get("text") or part.get("transcript") or "" for part in parts).strip()


def _part(part: Any, role: Role) -> Event:
    """Return one part of an item's content as the protocol shows it. Raises `UnmetError`."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS:
        return {
            "type": "output_text" if role is Role.ASSISTANT else "input_text",
            "text": text(part.get("text"), "text"),
        }
    if kind == USER_AUDIO_PART and role is Role.USER:
        return {"type": USER_AUDIO_PART, "transcript": None}
    if kind in ASSISTANT_AUDIO_PARTS and role is Role.ASSISTANT:
        return {"type": "output_audio", "transcript": text(part.get("transcript") or "", "transcript")}
    allowed = {
        Role.USER: (*TEXT_PARTS, USER_AUDIO_PART),
        Role.ASSISTANT: (*TEXT_PARTS, *ASSISTANT_AUDIO_PARTS),
        Role.SYSTEM: TEXT_PARTS,
    }
    raise UnmetError(f"one of {', '.join(allowed[role])}", got=f"{kind!r:.40}", field="type")

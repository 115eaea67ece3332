"""Special tokens and chat template of Qwen3-Omni, and their ids in a config, for checkpoints made by this project."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant")  # each is one token: transformers' generate() finds the turns by these

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
)

# Qwen's chat format: <|im_start|>ROLE\n CONTENT <|im_end|>\n; a clip is <|audio_start|><|audio_pad|><|audio_end|>.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%}{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
{%- elif part.type == 'text' -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def with_chat_format(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Add the special tokens and the chat template to a tokenizer, and wrap it for transformers."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        extra_special_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )


def modality_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the token ids that are in both the thinker's and the talker's config."""
    return _ids(
        tokenizer,
        audio_token_id="<|audio_pad|>",
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        audio_start_token_id="<|audio_start|>",
        vision_start_token_id="<|vision_start|>",
    )


def turn_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the token ids in the config of the whole model, by which `generate()` finds turns and speech."""
    return _ids(
        tokenizer,
        im_start_token_id="<|im_start|>",
        im_end_token_id="<|im_end|>",
        tts_pad_token_id="<tts_pad>",
        tts_bos_token_id="<tts_text_bos>",
        tts_eos_token_id="<tts_text_eod>",
        **{f"{role}_token_id": role for role in ROLES},
    )


def _ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}

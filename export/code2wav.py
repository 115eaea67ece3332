"""Codec frames to waveform, a tick at a time: the streaming form of transformers' `Qwen3OmniMoeCode2Wav`.

A frame of -1 is silence: it ends an utterance and resets the states. `BEGIN` is 1 if an utterance begins with the first
frame of the tick: it separates two utterances without silence between them.

Code2wav is causal except for its four transposed convolutions, each of which needs one input frame more than it
completes: the stream is 8*5*4*3 + 5*4*3 + 4*3 + 3 = 555 samples (23 ms) late. The samples before the clip (pre-roll)
are set to zero at every level, as the zero padding of the clip would be; so the stream, shifted by 555 samples, equals
the one-shot waveform.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from config.settings import CODE2WAV_DELAY
from export.stateful_module import StatefulModule, TensorSpec

DELAY_SAMPLES = CODE2WAV_DELAY
PCM_PEAK = 32767.0


class Tails:
    """The ends of the convolutions' inputs that the next tick needs, packed in one tensor in the order of use."""

    def __init__(self, packed: Tensor):
        self._packed = packed
        self._offset = 0
        self._new: list[Tensor] = []

    def extend(self, signal: Tensor, length: int) -> Tensor:
        """Return [B, C, length + T]: the signal [B, C, T] after its tail; keep the new tail."""
        channels = signal.shape[1]
        size = channels * length
        tail = self._packed[:, self._offset : self._offset + size].unflatten(1, (channels, length))
        self._offset += size
        extended = torch.cat([tail, signal], dim=2)
        self._new.append(extended[:, :, -length:].flatten(1))
        return extended

    def pack(self) -> Tensor:
        """Return all new tails as one tensor [B, N]."""
        return torch.cat(self._new, dim=1)


class Code2Wav(StatefulModule):
    """`forward(CODES, BEGIN, conv, frames, kv) -> (AUDIO_OUT, new_conv, new_frames, new_kv)`.

    Re-implements `Qwen3OmniMoeCode2Wav` (transformers 5.20.2). `conv` packs the ends of all convolutions' inputs,
    `frames` counts the codec frames up to the attention window, `kv` holds the keys (not yet rotated) and values of the
    last 71 frames of each layer. Rotation is by position in the window: attention depends only on differences of
    positions, so positions need not grow.

    Raises `ValueError` if the delay of the checkpoint is not 555 samples.
    """

    cos: Tensor
    sin: Tensor
    in_window: Tensor

    def __init__(self, code2wav: Any, frames: int):
        super().__init__()
        config = code2wav.config
        self.model = code2wav
        self.past = config.sliding_window - 1  # previous frames in the attention window of a frame: 71
        self.rates = tuple(config.upsample_rates)
        upsampled = frames * math.prod(config.upsampling_ratios)
        delay, length, gates = 0, upsampled, []
        for rate in self.rates:
            delay, length = (delay + 1) * rate, length * rate
            gates.append(torch.arange(length) >= delay)
        if delay != DELAY_SAMPLES:
            raise ValueError(
                f"code2wav with upsample_rates {self.rates} delays {delay} samples, expected {DELAY_SAMPLES}"
            )
        for level, gate in enumerate(gates):
            self.register_buffer(f"gate{level}", gate)

        positions = torch.arange(self.past + frames)
        cos, sin = code2wav.pre_transformer.rotary_emb(torch.ones(1), positions[None])
        self.register_buffer("cos", cos[0])  # [past + frames, head_dim]
        self.register_buffer("sin", sin[0])
        query, key = self.past + torch.arange(frames)[:, None], positions[None]
        self.register_buffer("in_window", (key <= query) & (key > query - config.sliding_window))

        dtype = code2wav.code_embedding.weight.dtype
        attention = code2wav.pre_transformer.layers[0].self_attn
        kv_dims = (config.num_hidden_layers, 2, config.num_key_value_heads, self.past, attention.head_dim)
        samples, self.samples_per_frame = length, length // frames
        self.inputs = (
            TensorSpec("CODES", torch.int64, (config.num_quantizers, frames), below=config.codebook_size),
            TensorSpec("BEGIN", torch.int64, (1,), below=2),
        )
        self.states = (
            TensorSpec("conv", dtype, (sum(self._tail_sizes()),)),
            TensorSpec("frames", torch.float32, (1,)),
            TensorSpec("kv", dtype, kv_dims),
        )
        self.outputs = (TensorSpec("AUDIO_OUT", torch.int16, (samples,)),)

    def forward(
        self, codes: Tensor, begin: Tensor, conv: Tensor, frames: Tensor, kv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map codes [B, 16, T], begin [B, 1] and the states to PCM16 [B, 1920 T] and the new states."""
        waveform, *states = self.waveform(codes, begin, conv, frames, kv)
        conv, frames, kv = states
        return (waveform * PCM_PEAK).round().to(torch.int16), conv, frames, kv

    def waveform(
        self, codes: Tensor, begin: Tensor, conv: Tensor, frames: Tensor, kv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the waveform in float32 within [-1, 1], and the new states.

        The samples of a frame of -1 are exactly zero, and the states after it are the initial ones.
        """
        begins = begin > 0  # [B, 1]
        conv, frames = conv.masked_fill(begins, 0.0), frames.masked_fill(begins, 0.0)
        kv = kv.masked_fill(begins[:, :, None, None, None, None], 0.0)
        tails = Tails(conv)
        begun = frames[:, :, None] > 0  # [B, 1, 1]
        spoken = codes[:, :1] >= 0  # [B, 1, T]

        hidden = self.model.code_embedding(codes.clamp(min=0) + self.model.code_offset).mean(1)  # [B, T, H]
        hidden, new_kv = self._transformer(hidden, frames, kv)
        signal = hidden.transpose(1, 2)
        for transposed, convnext in self.model.upsample:
            signal = transposed.conv(signal)  # kernel size equals stride: frames are independent
            signal = self._convnext(convnext, signal, tails)
        signal = self._causal(self.model.decoder[0], signal, tails)
        for level, rate in enumerate(self.rates):
            gate = getattr(self, f"gate{level}") | begun  # [B, 1, T]
            snake, transposed, *residual_units = self.model.decoder[level + 1].block
            signal = self._upsample(transposed, snake(signal), rate, tails) * gate
            for unit in residual_units:
                branch = self._causal(unit.conv1, unit.act1(signal), tails)
                signal = (signal + unit.conv2.conv(unit.act2(branch))) * gate
        signal = self._causal(self.model.decoder[-1], self.model.decoder[-2](signal), tails)

        audible = spoken.transpose(1, 2).expand(-1, -1, self.samples_per_frame).flatten(1)  # [B, samples]
        waveform = (signal[:, 0].float().clamp(-1.0, 1.0) * gate[:, 0]).masked_fill(~audible, 0.0)
        new_frames = (frames + codes.shape[2]).clamp(max=float(self.past))
        has_ended = ~spoken[:, 0, -1:]  # [B, 1]
        return (
            waveform,
            tails.pack().masked_fill(has_ended, 0.0),
            new_frames.masked_fill(has_ended, 0.0),
            new_kv.masked_fill(has_ended[:, :, None, None, None, None], 0.0),
        )

    def _transformer(self, hidden: Tensor, frames: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Map hidden [B, T, H] and kv [B, L, 2, heads, past, D] to hidden [B, T, H] and the new kv."""
        transformer = self.model.pre_transformer
        length = hidden.shape[1]
        position = torch.arange(self.past + length, device=hidden.device)
        exists = position[None] >= self.past - frames  # [B, past + T]
        visible = self.in_window & exists[:, None, None]  # [B, 1, T, past + T]

        new_kv = []
        for index, layer in enumerate(transformer.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)

            def heads(projection: nn.Module, x: Tensor = normed, size: int = attention.head_dim) -> Tensor:
                return projection(x).unflatten(2, (-1, size)).transpose(1, 2)  # [B, heads, T, D]

            keys = torch.cat([kv[:, index, 0], heads(attention.k_proj)], dim=2)
            values = torch.cat([kv[:, index, 1], heads(attention.v_proj)], dim=2)
            new_kv.append(torch.stack([keys[:, :, -self.past :], values[:, :, -self.past :]], dim=1))

            query = _rotate(heads(attention.q_proj), self.cos[self.past :], self.sin[self.past :])
            scores = query @ _rotate(keys, self.cos, self.sin).transpose(2, 3) * attention.scaling
            scores = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
            attended = scores.softmax(dim=-1).to(values.dtype) @ values  # [B, heads, T, D]
            attended = attention.o_proj(attended.transpose(1, 2).flatten(2))
            hidden = hidden + layer.self_attn_layer_scale(attended)
            hidden = hidden + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(hidden)))
        return transformer.norm(hidden), torch.stack(new_kv, dim=1)

    @staticmethod
    def _causal(layer: Any, signal: Tensor, tails: Tails) -> Tensor:
        return layer.conv(tails.extend(signal, layer.padding))

    @staticmethod
    def _convnext(block: Any, signal: Tensor, tails: Tails) -> Tensor:
        branch = block.dwconv.conv(tails.extend(signal, block.dwconv.padding)).transpose(1, 2)
        branch = block.gamma * block.pwconv2(block.act(block.pwconv1(block.norm(branch))))
        return signal + branch.transpose(1, 2)

    @staticmethod
    def _upsample(transposed: Any, signal: Tensor, rate: int, tails: Tails) -> Tensor:
        """Map [B, C, T] to [B, C', rate * T], one input frame late: the last frame is completed by the next tick."""
        return transposed.conv(tails.extend(signal, 1))[:, :, rate:-rate]

    def _tail_sizes(self) -> Iterator[int]:
        """Yield the sizes of the tails in the order in which `forward` uses them."""
        for _, convnext in self.model.upsample:
            yield _tail_size(convnext.dwconv)
        yield _tail_size(self.model.decoder[0])
        for block in self.model.decoder[1:-2]:
            _, transposed, *residual_units = block.block
            yield transposed.conv.in_channels
            for unit in residual_units:
                yield _tail_size(unit.conv1)
        yield _tail_size(self.model.decoder[-1])


def _tail_size(layer: Any) -> int:
    return int(layer.conv.in_channels * layer.padding)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding, in transformers' half-split layout: x [B, heads, T, D]; cos, sin [T, D]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

"""All uses of aiortc's private members, which no public interface replaces; checked with the versions below."""

from __future__ import annotations

from collections.abc import Callable

import aiortc
from aiortc import RTCRtpReceiver, RTCRtpTransceiver, RTCSctpTransport
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcsctptransport import DataChunk
from aiortc.rtp import RtpPacket

from frontend.webrtc.packet_buffer import PacketBuffer

VERSIONS = ("1.15.0", "1.16.0")
MAX_STREAMS = 16  # streams of a client's data channels; the protocol has one
MAX_FRAGMENTS = 1000  # fragments of unfinished messages on a stream; a message has at most 64

if aiortc.__version__ not in VERSIONS:
    raise ImportError(
        f"expected aiortc {' or '.join(VERSIONS)}, got {aiortc.__version__}: check the private members that "
        f"{__name__} uses, then add the version"
    )


def keep_codecs(transceiver: RTCRtpTransceiver, mime_type: str) -> bool:
    """Remove all other codecs from a transceiver; returns whether one is left."""
    codecs = [codec for codec in transceiver._codecs if codec.mimeType.lower() == mime_type]
    transceiver._codecs = codecs
    return bool(codecs)


def order_packets(receiver: RTCRtpReceiver) -> None:
    """Replace an audio receiver's jitter buffer with a `PacketBuffer`.

    aiortc has no setting for it, and its buffer's interface releases at most one frame for each packet.
    """
    inner = vars(receiver)

    def decode(packet: RtpPacket) -> None:
        data = packet._data  # type: ignore[attr-defined]
        if data:  # the decoder takes an empty packet for the end
            codec = inner["_RTCRtpReceiver__codecs"][packet.payload_type]
            timestamp = inner["_RTCRtpReceiver__timestamp_mapper"].map(packet.timestamp)
            inner["_RTCRtpReceiver__decoder_queue"].put((codec, JitterFrame(data, timestamp)))

    inner["_RTCRtpReceiver__jitter_buffer"] = PacketBuffer(decode)


def bound_fragments(transport: RTCSctpTransport, hang_up: Callable[[], None]) -> None:
    """Call `hang_up` for a client with too many unfinished messages: aiortc scans all fragments for each new one."""
    receive = transport._receive_data_chunk

    async def receive_bounded(chunk: DataChunk) -> None:
        streams = transport._inbound_streams
        if len(streams) > MAX_STREAMS or len(transport._get_inbound_stream(chunk.stream_id).reassembly) > MAX_FRAGMENTS:
            hang_up()
        else:
            await receive(chunk)

    transport._receive_data_chunk = receive_bounded  # type: ignore[method-assign]

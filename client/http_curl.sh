#!/usr/bin/env bash
# A conversation with Triton over plain HTTP, with only curl: client/http_curl.sh IN.wav OUT.pcm [HOST:PORT]
# The HTTP endpoint is off by default; the setting triton.http_port opens it: SCA_TRITON_HTTP_PORT=8010 ./sca serve
#
# IN.wav is 16-bit mono 16 kHz; OUT.pcm becomes raw 16-bit mono 24 kHz (play it: aplay -f S16_LE -r 24000 OUT.pcm).
# Each tick is one POST: a JSON header, then the raw samples of the tick. The response has the same form.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: client/http_curl.sh IN.wav OUT.pcm [HOST:PORT]" >&2
    exit 2
fi
fail() { # reason
    echo "$in: $1" >&2
    exit 1
}
in=$1 out=$2 url=http://${3:-127.0.0.1:8010}/v2/models/duplex/infer
tick_samples=5120
tick_bytes=$((tick_samples * 2)) answer_bytes=$((tick_samples * 3))
conversation=$((RANDOM << 15 | RANDOM | 1))
number() { od -An -t "u$2" -j "$1" -N "$2" "$in" 2> /dev/null | tr -d ' ' || true; } # offset in the file, size in bytes
name() { tail -c +$(($1 + 1)) "$in" | head -c 4 | tr -d '\0' || true; } # name of the chunk at an offset
chunk() { # byte offset and size of a chunk of the WAV; the data chunk is seldom the first one
    local at=12 size
    while size=$(number $((at + 4)) 4) && [ -n "$size" ] && [ $((at + 8)) -le "$bytes" ]; do
        [ "$(name $at)" != "$1" ] || { echo $((at + 8)) "$size"; return; }
        at=$((at + 8 + size + size % 2))
    done
    fail "expected a WAV, got a file without a chunk '$1'"
}
[ -f "$in" ] && [ -r "$in" ] || fail "expected a WAV, got no file that can be read"
bytes=$(wc -c < "$in")
case "$(name 0)$(name 8)" in
    RIFFWAVE | RF64WAVE) ;;
    *) fail "expected a WAV, got another format or an empty file" ;;
esac
format=$(chunk "fmt ")
sound=$(chunk data)
read -r at format_bytes <<< "$format"
kind=$(number "$at" 2)
[ "$kind" != 65534 ] || [ "$format_bytes" -lt 26 ] || kind=$(number $((at + 24)) 2) # WAVE_FORMAT_EXTENSIBLE
if [ "$(number $((at + 4)) 4) $(number $((at + 2)) 2) $(number $((at + 14)) 2) $kind" != "16000 1 16 1" ]; then
    fail "expected 16000 Hz, 1 channel, 16 bits, format 1 (PCM), got $(number $((at + 4)) 4) Hz,\
 $(number $((at + 2)) 2) channels, $(number $((at + 14)) 2) bits, format $kind"
fi
read -r at size <<< "$sound"
# Programs that write to a pipe leave 0 or the largest number as the size: the samples reach to the end of the file.
[ "$size" -ne 0 ] || [ "$(name "$at")" = LIST ] || size=$((bytes - at))
[ $((at + size)) -le "$bytes" ] || size=$((bytes - at))
[ "$size" -ge 2 ] || fail "it has no samples"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tail -c +$((at + 1)) "$in" | head -c $((size / 2 * 2)) > "$work/sound" || true # head ends before tail does
ticks=$((($(wc -c < "$work/sound") + tick_bytes - 1) / tick_bytes))
truncate -s $((ticks * tick_bytes)) "$work/sound" # pads the last tick with silence
: > "$out"

for ((tick = 0; tick < ticks; tick++)); do
    [ "$tick" -eq 0 ] && start=true || start=false
    [ "$tick" -eq $((ticks - 1)) ] && end=true || end=false
    header=$(printf '{"parameters":{"sequence_id":%d,"sequence_start":%s,"sequence_end":%s},"inputs":[{"name":"AUDIO_IN","shape":[1,%d],"datatype":"INT16","parameters":{"binary_data_size":%d}}],"outputs":[{"name":"TEXT","parameters":{"binary_data":false}},{"name":"AUDIO_OUT","parameters":{"binary_data":true}}]}' \
        "$conversation" "$start" "$end" "$tick_samples" "$tick_bytes")
    {
        printf '%s' "$header"
        tail -c +$((tick * tick_bytes + 1)) "$work/sound" | head -c "$tick_bytes" || true # head ends before tail does
    } > "$work/request"
    if ! curl --noproxy '*' --silent --show-error --fail-with-body --output "$work/answer" --data-binary "@$work/request" \
        --header "Content-Type: application/octet-stream" \
        --header "Inference-Header-Content-Length: ${#header}" "$url"; then
        [ ! -f "$work/answer" ] || cat "$work/answer" >&2
        exit 1
    fi
    tail -c "$answer_bytes" "$work/answer" >> "$out"
done
echo "$ticks ticks sent and received" >&2

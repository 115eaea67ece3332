#!/usr/bin/env bash
# Speed of the whole path at full size on a CUDA machine, from WebSocket to WebSocket, without a download: random weights.
#
#   PYTHON=python3 OUT=folder CHECKPOINT=/dev/shm/full-size CONVERSATIONS=1,8,32,64 benchmarks/gpu_served.sh
#
# $CHECKPOINT (71 GB) is created if it does not exist.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
CHECKPOINT=${CHECKPOINT:-/dev/shm/full-size}
CONVERSATIONS=${CONVERSATIONS:-1,8,32,64}
SECONDS_EACH=${SECONDS_EACH:-20}
mkdir -p "$OUT"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export SCA_QWEN_MODEL_ID=$CHECKPOINT SCA_ENGINE_CONTEXT_S=120 SCA_ENGINE_SLOTS=${CONVERSATIONS##*,}
export SCA_TRITON_START_TIMEOUT_S=600
port=${SCA_BRIDGE_PORT:-8000}

[ -e "$CHECKPOINT/config.json" ] || time "$python" -m benchmarks.full_size "$CHECKPOINT"
begun=$SECONDS
"$python" -m commands serve --build "$OUT/build" >"$OUT/serve.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null' EXIT
until "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/readyz', timeout=1)" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { tail -n 60 "$OUT/serve.log" "$OUT/build/triton.log"; exit 1; }
    sleep 1
done
echo "ready after $((SECONDS - begun)) s"
"$python" -m commands bench turn-bridge --build "$OUT" --conversations "$CONVERSATIONS" --seconds "$SECONDS_EACH"
cp "$OUT/build/triton.log" "$OUT/triton.log"

#!/usr/bin/env bash
# The engine at full size on a CUDA machine, with nothing to download: random weights, bfloat16.
#
#   PYTHON=python3 OUT=folder benchmarks/gpu.sh
#
# Tables and a profile go to the terminal, all figures, pictures and logs to $OUT. Under nine minutes on one H200: each
# part ends by itself, or is ended when its share of the time is over, and the parts after it still run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
export PYTHONPATH=. OMP_NUM_THREADS=8 SCA_QWEN_DEVICE_MAP=cuda SCA_QWEN_TORCH_DTYPE=bfloat16 SCA_ENGINE_CONTEXT_S=120
failed=0

# part NAME SECONDS COMMAND...: runs one part, keeps its output, and goes on whatever becomes of it.
part() {
    local name=$1 seconds=$2 begun=$SECONDS
    shift 2
    printf '\n== %s\n' "$name"
    timeout --signal=INT --kill-after=20 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 45
    local status=${PIPESTATUS[0]}
    printf '== %s: status %s after %s s\n' "$name" "$status" $((SECONDS - begun))
    [ "$status" = 0 ] || failed=1
}

part machine 15 nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem --format=csv
part versions 40 "$python" -c 'import torch, transformers, triton; print(torch.__version__, transformers.__version__, triton.__version__)'
# The kernel first: what is fast and wrong is of no use.
part exact 110 "$python" -m benchmarks.gpu_exact
# From the end of a user's turn to the first codes of the answer.
part turns 90 "$python" -m commands bench turn --build "$OUT/turns" --config full --conversations 1,8,32 --ticks 64
# Many conversations, nearly as old as their context is long; one beside transformers; where the time goes; no graphs.
part many 120 "$python" -m commands bench engine --build "$OUT/many" --config full \
    --conversations 1,2,4,8,16,32,64,128 --ticks 30 --age-s 100
part one 80 "$python" -m commands bench engine --build "$OUT/one" --config full --conversations 1 --ticks 100 \
    --baseline transformers --baseline-ticks 6
part profile 50 "$python" -m commands bench engine --build "$OUT/profile" --config full --conversations 64 --ticks 3 --profile
part eager 40 env SCA_ENGINE_CUDA_GRAPHS=false "$python" -m commands bench engine --build "$OUT/eager" --config full \
    --conversations 1,64 --ticks 5
exit "$failed"

#!/usr/bin/env bash
# Exactness and speed of the engine at full size on a CUDA machine, without a download: random weights, bfloat16.
#
#   PYTHON=python3 OUT=folder benchmarks/gpu.sh
#
# Tables go to the terminal; all figures, pictures, profiles and logs to $OUT. Under five minutes on one H200.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
export SCA_QWEN_DEVICE_MAP=cuda SCA_QWEN_TORCH_DTYPE=bfloat16 SCA_ENGINE_CONTEXT_S=120

nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem --format=csv | tee "$OUT/machine.log"
"$python" -c 'import torch, transformers, triton; print(torch.__version__, transformers.__version__, triton.__version__)'
failed=0
# Exactness first: speed only counts if the results are right.
"$python" -m benchmarks.gpu_exact 2>&1 | tee "$OUT/exact.log" || failed=1
"$python" -m benchmarks.gpu_speed "$OUT" 2>&1 | tee "$OUT/speed.log" || failed=1
exit "$failed"

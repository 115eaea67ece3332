#!/usr/bin/env bash
# Entry point in NVIDIA's container: exports the checkpoint unless it is exported already, then executes tritonserver
# with all further arguments. With TENSORRT=1 it first builds TensorRT engines of the two ONNX stages; trtexec and
# polygraphy have to be on PATH, as in NVIDIA's TensorRT container.
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SCA_ENGINE_CPU_THREADS:-1}}"
repository=$(python3 "$root/commands/entry" export ${TENSORRT:+--tensorrt} --build "${BUILD_FOLDER:-/var/lib/sca}")
cd "$root" # the Python backend imports packages from its working directory first
traces=${SCA_BRIDGE_TRACES_URL:-}
# Triton reads the URL, which may contain a password, from the environment: users of the machine can read command lines.
[ -z "$traces" ] || export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="$traces"
unset SCA_BRIDGE_API_KEYS SCA_BRIDGE_ICE_SERVERS SCA_BRIDGE_TRACES_URL # secrets of the bridge
exec tritonserver \
    --model-repository="$repository" \
    --http-port="${SCA_TRITON_HTTP_PORT:-8010}" \
    --grpc-port="${SCA_TRITON_GRPC_PORT:-8001}" \
    --metrics-port="${SCA_TRITON_METRICS_PORT:-8002}" \
    --disable-auto-complete-config \
    --exit-on-error=true \
    ${traces:+--trace-config=mode=opentelemetry --trace-config=level=TIMESTAMPS --trace-config=rate=0} \
    "$@"

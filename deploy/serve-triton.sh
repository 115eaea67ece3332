#!/usr/bin/env bash
# Inside NVIDIA's container: exports the checkpoint (or finds it exported), then becomes tritonserver.
# Further arguments go to tritonserver. With TENSORRT=1 the two ONNX stages run as TensorRT engines, which are built
# first: that takes trtexec and polygraphy on PATH, as NVIDIA's TensorRT container has them.
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SCA_ENGINE_CPU_THREADS:-1}}"
repository=$(python3 -m commands export ${TENSORRT:+--tensorrt} --build "${BUILD_FOLDER:-/var/lib/sca}")
traces=${SCA_BRIDGE_TRACES_URL:+--trace-config=opentelemetry,url=$SCA_BRIDGE_TRACES_URL}
exec tritonserver \
    --model-repository="$repository" \
    --http-port="${SCA_TRITON_HTTP_PORT:-8010}" \
    --grpc-port="${SCA_TRITON_GRPC_PORT:-8001}" \
    --metrics-port="${SCA_TRITON_METRICS_PORT:-8002}" \
    --disable-auto-complete-config \
    --exit-on-error=true \
    ${traces:+--trace-config=mode=opentelemetry --trace-config=level=TIMESTAMPS --trace-config=rate=0 "$traces"} \
    "$@"

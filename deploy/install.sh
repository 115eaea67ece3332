#!/usr/bin/env bash
# Makes a virtual environment with what a role needs, at the versions of requirements.lock:
#
#   deploy/install.sh laptop VENV      what ./sca needs: the server of the Triton wheel, the engine, the bridge
#   deploy/install.sh checks VENV      the same and all that ./sca test needs
#   deploy/install.sh tensorrt VENV    what ./sca export --tensorrt needs besides
#   deploy/install.sh server VENV      what runs inside NVIDIA's Triton container, which brings Triton itself
#   deploy/install.sh bridge VENV      the bridge alone, without torch
#
# ./sca, both Dockerfiles and the tests run this same script.
set -euo pipefail

role=$1 venv=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$root/requirements.lock
python=${SCA_PYTHON:-python3}

triton=nvidia-pytriton==0.7.0 # carries the tritonserver binary; --no-deps: of what it needs we use nothing
triton_numpy=numpy==1.26.4    # the server's Python processes know no numpy 2; Python 3.13 has no wheel of a numpy 1

bridge=(fastapi uvicorn websockets aiortc python-multipart prometheus-client soxr "tritonclient[grpc]" numpy rich
    opentelemetry-api opentelemetry-sdk opentelemetry-exporter-otlp-proto-http)
engine=("${bridge[@]}" torch transformers accelerate peft optimum silero-vad onnx onnxscript onnxruntime)
laptop=("${engine[@]}" "tritonclient[http]" soundfile psutil matplotlib)
tensorrt=(nvidia-modelopt onnx-graphsurgeon onnxconverter-common onnxslim lief polygraphy)

"$python" -m venv "$venv" || "$python" -m virtualenv "$venv" || {
    echo "sca: '$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}
# pip's hundreds of lines as one that counts; what it warns of and fails with stays.
install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" |
        awk '/^Collecting/ { printf "\r  %d packages found", ++found }
             /^ +Downloading/ { printf "\r  %d packages found, downloading %s %s          ", found, $2, $3 }
             /^Installing/ { printf "\n  installing them ...\n" }
             { fflush() }' >&2
}

install_triton() {
    install --no-deps "$triton"
    if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
        echo "sca: Python 3.13: compiling $triton_numpy for the Triton server's own processes (some minutes)" >&2
        install --no-deps --target "$venv/triton_numpy" "$triton_numpy"
    fi
}

case $role in
    bridge) install --constraint "$lock" "${bridge[@]}" ;;
    server) install --constraint "$lock" "${engine[@]}" "${tensorrt[@]}" ;;
    tensorrt) install --constraint "$lock" "${tensorrt[@]}" ;;
    laptop | checks)
        echo "sca: [1/2] the pinned packages" >&2
        if [ "$role" = laptop ]; then
            install --constraint "$lock" "${laptop[@]}"
        else
            install --requirement "$lock"
        fi
        echo "sca: [2/2] the Triton server" >&2
        install_triton
        ;;
    *)
        echo "sca: the role is '$role', expected laptop, checks, tensorrt, server or bridge" >&2
        exit 2
        ;;
esac

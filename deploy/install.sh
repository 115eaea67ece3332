#!/usr/bin/env bash
# Creates a virtual environment with the packages of a role, at the versions of requirements.lock:
#
#   deploy/install.sh laptop VENV      packages of ./sca: the server of the Triton wheel, the engine, the bridge
#   deploy/install.sh checks VENV      packages of laptop and of ./sca test
#   deploy/install.sh tensorrt VENV    additional packages of ./sca export --tensorrt
#   deploy/install.sh server VENV      packages for NVIDIA's Triton container, which contains Triton
#   deploy/install.sh bridge VENV      packages of only the bridge, without torch
#
# ./sca, both Dockerfiles and the tests run this script.
set -euo pipefail

role=$1 venv=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$root/requirements.lock
python=${SCA_PYTHON:-python3}

triton=nvidia-pytriton==0.7.0 # contains the tritonserver binary; --no-deps: sca uses none of its dependencies
triton_numpy=numpy==1.26.4    # the server's Python processes need numpy 1, which has no wheel for Python 3.13

bridge=(fastapi pydantic uvicorn websockets aiortc python-multipart prometheus-client soxr "tritonclient[grpc]" numpy rich
    opentelemetry-api opentelemetry-sdk opentelemetry-exporter-otlp-proto-http)
engine=("${bridge[@]}" torch transformers accelerate peft optimum silero-vad onnx onnxscript onnxruntime)
laptop=("${engine[@]}" "tritonclient[http]" soundfile psutil matplotlib)
tensorrt=(nvidia-modelopt onnx-graphsurgeon onnxconverter-common onnxslim lief polygraphy)

"$python" -m venv "$venv" || "$python" -m virtualenv "$venv" || {
    echo "sca: '$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}
# Shortens the output of pip to one line with a counter; warnings and errors stay.
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

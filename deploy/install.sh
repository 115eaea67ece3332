#!/usr/bin/env bash
# Makes a virtual environment with what a role needs, at the versions of requirements.lock:
#
#   deploy/install.sh laptop VENV    everything: the server of the Triton wheel, the bridge, the checks
#   deploy/install.sh server VENV    what runs inside NVIDIA's Triton container, which brings Triton itself
#   deploy/install.sh bridge VENV    the bridge alone, without torch
#
# ./sca, both Dockerfiles and the tests run this same script.
set -euo pipefail

role=$1 venv=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$root/requirements.lock
python=${SCA_PYTHON:-python3}

triton=nvidia-pytriton==0.7.0 # carries the tritonserver binary; --no-deps: of what it needs we use nothing
triton_numpy=numpy==1.26.4    # the server's Python processes know no numpy 2; Python 3.13 has no wheel of a numpy 1

bridge=(fastapi uvicorn websockets "tritonclient[grpc]" numpy rich)
server=("${bridge[@]}" torch transformers accelerate peft optimum onnx onnxscript onnxruntime
    nvidia-modelopt onnx-graphsurgeon onnxconverter-common onnxslim lief polygraphy) # the last six: export --tensorrt

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

case $role in
    bridge) install --constraint "$lock" "${bridge[@]}" ;;
    server) install --constraint "$lock" "${server[@]}" ;;
    laptop)
        echo "sca: [1/2] the pinned packages" >&2
        install --requirement "$lock"
        echo "sca: [2/2] the Triton server" >&2
        install --no-deps "$triton"
        if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
            echo "sca: Python 3.13: compiling $triton_numpy for the Triton server's own processes (some minutes)" >&2
            install --no-deps --target "$venv/triton_numpy" "$triton_numpy"
        fi
        ;;
    *)
        echo "sca: the role is '$role', expected laptop, server or bridge" >&2
        exit 2
        ;;
esac

# The server: NVIDIA's Triton with the engine. Build in the project's root folder:
#   docker build -t sca-server .
FROM nvcr.io/nvidia/tritonserver:26.07-py3

# Triton (the language), which compiles the CUDA kernels, needs a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sca
COPY requirements.lock ./
COPY deploy/install.sh deploy/install.sh
RUN deploy/install.sh server /opt/venv

COPY deploy/serve-triton.sh deploy/serve-triton.sh
COPY commands commands
COPY config config
COPY contract contract
COPY checkpoints checkpoints
COPY engine engine
COPY export export
COPY model_repository model_repository

# No TF32: with it neither the DFT nor code2wav would be exact.
# The Python backend runs the python3 on PATH, and imports packages from its working directory first.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/sca \
    PYTHONUNBUFFERED=1 \
    NVIDIA_TF32_OVERRIDE=0 \
    SCA_TRITON_INSTANCE=gpu \
    SCA_TRITON_HOST=0.0.0.0
VOLUME /var/lib/sca
EXPOSE 8010 8001 8002
# The first start may download and export for up to an hour; compose waits for it.
HEALTHCHECK --interval=10s --start-period=60m \
    CMD ["sh", "-c", "curl --noproxy '*' --fail --silent http://localhost:${SCA_TRITON_HTTP_PORT:-8010}/v2/health/ready"]
ENTRYPOINT ["deploy/serve-triton.sh"]

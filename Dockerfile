# The server: NVIDIA's Triton with the engine inside. Build from the project's root:
#   docker build -t sca-server .
FROM nvcr.io/nvidia/tritonserver:26.07-py3

# The compiler of the CUDA kernels wants a C compiler and Python's headers.
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

# float32 means float32: in TF32 neither the DFT nor code2wav would be exact.
# The Python backend takes the python3 that it finds on PATH, and looks for packages in its working directory first.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/sca \
    PYTHONUNBUFFERED=1 \
    NVIDIA_TF32_OVERRIDE=0 \
    SCA_TRITON_INSTANCE=gpu \
    SCA_TRITON_HOST=0.0.0.0
VOLUME /var/lib/sca
EXPOSE 8010 8001 8002
# The first start may download and export for most of an hour; compose waits for it.
HEALTHCHECK --interval=10s --start-period=60m \
    CMD ["sh", "-c", "curl --fail --silent http://localhost:${SCA_TRITON_HTTP_PORT:-8010}/v2/health/ready"]
ENTRYPOINT ["deploy/serve-triton.sh"]

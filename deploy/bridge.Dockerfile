# The bridge: Python with the WebSocket and the page, without torch. Build in the project's root folder:
#   docker build -f deploy/bridge.Dockerfile -t sca-bridge .
FROM python:3.12-slim

WORKDIR /opt/sca
COPY requirements.lock ./
COPY deploy/install.sh deploy/install.sh
RUN deploy/install.sh bridge /opt/venv

COPY commands commands
COPY config config
COPY contract contract
COPY checkpoints checkpoints
COPY frontend frontend

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/sca \
    PYTHONUNBUFFERED=1 \
    SCA_BRIDGE_HOST=0.0.0.0
USER 65534
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=15m \
    CMD ["python3", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://localhost:8000/healthz')"]
ENTRYPOINT ["python3", "/opt/sca/commands/entry", "bridge"]

# The gateway alone: Python, one virtual environment with the wheel and ONNX Runtime, and a user who owns nothing.
#
#     docker build -t rapport .
#     docker run --read-only -p 127.0.0.1:8080:8080 -v "$PWD/models:/models:ro" -v "$PWD/keys.toml:/run/keys.toml:ro" \
#         -e RAPPORT_KEYS_FILE=/run/keys.toml -e RAPPORT_REDIS=redis:6379 rapport
#
# Build arguments: BASE_IMAGE (any image with Python 3.11 or 3.12 and its venv module), EXTRAS (cpu, gpu, ...), and pip's
# own PIP_NO_INDEX, PIP_INDEX_URL, ... where PyPI is not what one builds from.
# A folder of wheels is used where it is given, with or without an index: `--build-context wheels=DIR`.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Empty; a build context of this name takes its place.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=cpu
ARG PIP_NO_INDEX=""
ARG PIP_INDEX_URL=""
# pip stays out of what is copied: it installs into the environment from an environment of its own.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/rapport
COPY . /src
RUN --mount=type=bind,from=wheels,target=/wheels \
    /build/bin/pip --python /opt/rapport/bin/python install --no-cache-dir --find-links /wheels "/src[${EXTRAS}]"

FROM ${BASE_IMAGE} AS gateway
COPY --from=build /opt/rapport /opt/rapport
ENV PATH=/opt/rapport/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAPPORT_HOST=0.0.0.0 \
    RAPPORT_PORT=8080 \
    RAPPORT_METRICS_PORT=9090 \
    RAPPORT_MODELS=/models
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Alive, not ready: a gateway whose Redis is away must not be restarted. http.client, because it ignores http_proxy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import http.client, os, sys; \
    connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['RAPPORT_PORT']), timeout=2); \
    connection.request('GET', '/livez'); sys.exit(connection.getresponse().status != 200)"]
CMD ["rapport", "serve"]

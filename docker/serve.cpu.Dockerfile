# ehm serve on a CPU, and nothing else: no training framework. From the root of the repository:
# docker build -f docker/serve.cpu.Dockerfile -t ehm:serve-cpu .
FROM python:3.11-slim AS build

ARG EXTRAS=serve
# The index that pip takes packages from, such as a mirror; empty is pip's own.
ARG PIP_INDEX_URL=

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY ehm ehm
COPY backends backends
COPY deploy deploy
COPY configs configs
RUN python -m venv /opt/ehm \
    && /opt/ehm/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim

RUN useradd --no-create-home --uid 1000 ehm
COPY --from=build /opt/ehm /opt/ehm
# The root may be read-only: whatever is written goes to /tmp, a tmpfs.
ENV PATH=/opt/ehm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba
USER 1000
WORKDIR /tmp

EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["ehm", "serve", "--host", "0.0.0.0", "--port", "8080", "--device", "cpu"]
CMD ["--help"]

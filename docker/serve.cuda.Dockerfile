# ehm serve on CUDA, and nothing else: no training framework. From the root of the repository:
# docker build -f docker/serve.cuda.Dockerfile -t ehm:serve-cuda .
# onnxruntime-gpu takes CUDA's libraries from PyPI: a CUDA image below it would hold them twice.
# The host needs NVIDIA's driver (580 or newer, for CUDA 13) and container toolkit, and nothing else.
FROM python:3.11-slim AS build

# onnxruntime-gpu instead of onnxruntime: they are the same module, and only one of them may be there.
ARG EXTRAS=serve-cuda
# The index that pip takes packages from, such as a mirror; empty is pip's own.
ARG PIP_INDEX_URL=

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY docker/constraints.serve-cuda.txt docker/
COPY ehm ehm
COPY backends backends
COPY deploy deploy
COPY configs configs
# The pins of this image count instead of those of constraints.txt, package by package.
RUN awk -F== 'NR == FNR {own[$1]; print; next} !($1 in own)' docker/constraints.serve-cuda.txt constraints.txt > pins.txt \
    && python -m venv /opt/ehm \
    && /opt/ehm/bin/pip install --no-cache-dir -c pins.txt ".[${EXTRAS}]"

FROM python:3.11-slim

RUN useradd --no-create-home --uid 1000 ehm
COPY --from=build /opt/ehm /opt/ehm
# The root may be read-only: whatever is written goes to /tmp, a tmpfs. ONNX Runtime does not look for CUDA's libraries
# where PyPI's packages put them. The last two are what NVIDIA's container toolkit reads.
ENV PATH=/opt/ehm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    LD_LIBRARY_PATH=/opt/ehm/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/ehm/lib/python3.11/site-packages/nvidia/cudnn/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /tmp

EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["ehm", "serve", "--host", "0.0.0.0", "--port", "8080", "--device", "cuda"]
CMD ["--help"]

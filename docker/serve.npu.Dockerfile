# ehm serve on Ascend 910B, and nothing else: no training framework. From the root of the repository:
# docker build -f docker/serve.npu.Dockerfile -t ehm:serve-npu .
# The base is the official image of CANN, for aarch64 and x86_64, of the version that onnxruntime-cann was built with.
FROM quay.io/ascend/cann:8.5.0-910b-ubuntu22.04-py3.11

# onnxruntime-cann instead of onnxruntime: they are the same module, and only one of them may be there.
ARG EXTRAS=serve-npu
# The index that pip takes packages from, such as a mirror; empty is pip's own.
ARG PIP_INDEX_URL=
# The host's ids: of the user that runs ehm, and of the group HwHiAiUser, which owns the devices.
ARG EHM_UID=1000
ARG HWHIAIUSER_GID=1000

USER 0
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY docker/constraints.serve-npu.txt docker/
COPY ehm ehm
COPY backends backends
COPY deploy deploy
COPY configs configs
# The pins of this image count instead of those of constraints.txt, package by package. CANN's compiler imports the
# packages that are named one by one (COMPILER_PACKAGES in backends/ascend.py): the base image has none of them.
RUN awk -F== 'NR == FNR {own[$1]; print; next} !($1 in own)' docker/constraints.serve-npu.txt constraints.txt > pins.txt \
    && python3 -m venv --system-site-packages /opt/ehm \
    && /opt/ehm/bin/pip install --no-cache-dir -c pins.txt ".[${EXTRAS}]" \
        absl-py attrs cffi cloudpickle decorator numpy protobuf psutil PyYAML requests scipy sympy
RUN (getent group "${HWHIAIUSER_GID}" || groupadd --gid "${HWHIAIUSER_GID}" HwHiAiUser) \
    && useradd --non-unique --no-create-home --uid "${EHM_UID}" --gid "${HWHIAIUSER_GID}" ehm
COPY --chmod=755 docker/ascend.sh /opt/ascend/bin/ehm
# The root may be read-only: whatever is written, CANN's logs too, goes to /tmp, a tmpfs.
ENV PATH=/opt/ascend/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba
USER ${EHM_UID}
WORKDIR /tmp

EXPOSE 8080
STOPSIGNAL SIGTERM
# CANN compiles the network for every batch size that it meets.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
ENTRYPOINT ["ehm", "serve", "--host", "0.0.0.0", "--port", "8080", "--device", "npu"]
CMD ["--help"]

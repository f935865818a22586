"""A bundle as an InferenceService of KServe (serving.kserve.io/v1beta1), run by Triton on its model repository.

KServe's own runtime ``kserve-tritonserver`` comes with every installation and speaks the Open Inference Protocol, so
nothing has to be built. The runtime is named: without it, KServe may choose another for ``onnx``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import yaml

from ehm.config import TritonConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export.engines.triton import choose_model_name, name_variant
from ehm.storage.names import make_dns_label
from ehm.storage.writing import write_text

__all__ = ["write_kserve"]

_HEADER = """\
# An InferenceService for the models {models}.
# storageUri is the place of the folder that ehm export --triton wrote: copy it there, then kubectl apply -f this file.
"""


def write_kserve(bundle: Bundle, file: Path, config: TritonConfig | None = None, device: str = "auto") -> None:
    """Write the YAML of an InferenceService to ``file``; ``device`` ``cuda`` asks for a GPU.

    ``triton.storage_uri`` is where the cluster finds the repository that :func:`~.triton.write_triton` wrote. Raises
    ConfigError for a name that Triton does not take.
    """
    config = config or TritonConfig()
    name = choose_model_name(bundle.path, config)
    models = ", ".join(name_variant(name, precision) for precision in bundle.manifest.models)
    service = yaml.safe_dump(_describe_service(bundle, name, config, device), sort_keys=False)
    write_text(Path(os.path.abspath(file)), _HEADER.format(models=models) + service)


def _describe_service(bundle: Bundle, name: str, config: TritonConfig, device: str) -> dict[str, Any]:
    """Return the InferenceService of a model as plain values."""
    # Triton takes about 1 GiB itself; ONNX Runtime holds each network in its file's and in its kernels' layout
    weights = sum(record.bytes for record in bundle.manifest.files.values())
    memory = f"{1 + math.ceil(2 * config.instances * weights / 2**30)}Gi"
    amounts = {"cpu": str(config.threads * config.instances or 2), "memory": memory}
    if device.startswith("cuda"):
        amounts["nvidia.com/gpu"] = "1"
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        # short enough for what KServe appends
        "metadata": {"name": make_dns_label(f"ehm-{name}", 44)},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "model": {
                    "modelFormat": {"name": "onnx", "version": "1"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": config.storage_uri,
                    # copies: YAML would write one mapping as an alias of the other
                    "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                    "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
                },
            }
        },
    }

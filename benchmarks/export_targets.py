"""The graphs that ehm export writes for its targets, in ONNX Runtime on this CPU, beside torch's eager float32.

    OMP_NUM_THREADS=1 python benchmarks/export_targets.py [--models vit_small vit_tiny] [--batches 1 8] [--turns 20]

Prints milliseconds of one thread's processor time a batch, which other programs disturb little; all contestants take
turns in one process. "speed" is the portable graph's time / theirs, turn by turn: the median and the quartiles. Two
other ways to write attention are measured too, which ehm does not use: ONNX Runtime's MultiHeadAttention and ONNX's own
Attention (operator set 23). Weights are random.
"""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ehm.backends.torch.export.module import build_trained_vit
from ehm.backends.torch.models.vit import build_vit
from ehm.config.encoders import VitSpec
from ehm.config.inputs import InputSpec
from ehm.deploy.export.graphs import vit
from ehm.deploy.export.graphs.network import make_graph
from ehm.deploy.export.graphs.nodes import MICROSOFT
from ehm.models.weights import Provenance, Weights

MODELS = {
    "vit_small": VitSpec((224, 224), 16, 384, 12, 6),
    "vit_tiny": VitSpec((96, 96), 12, 192, 12, 3),
}
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def make_weights(spec: VitSpec) -> Weights:
    """Make a classifier of ten classes with random weights."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, value in build_vit(spec, 10).state_dict().items():
        mean = 1.0 if "norm" in name and "weight" in name else 0.0
        arrays[name] = rng.normal(mean, 0.02, value.shape).astype(np.float32)
    inputs = InputSpec((0.5,) * 3, (0.5,) * 3)
    return Weights(arrays, Provenance("random", "file", inputs=inputs, labels=tuple("0123456789")), spec)


class _SplitGraph(vit.VitGraph, ABC):
    """A ViT whose attention is one operator of separate queries, keys and values."""

    operator: str

    def add_attention(self, name: str, tokens: str) -> str:
        """Add the operator, behind a split of its inputs (B, L, D)."""
        width = self.spec.width
        parts = [f"{name}/{part}" for part in ("query", "key", "value")]
        sizes = self.add_integers("attn.parts", width, width, width)
        self.add_node("Split", [self.add_linear(f"{name}.qkv", tokens), sizes], *parts, axis=2)
        merged = self.add_node(self.operator, parts, f"{name}/merged", **self._attributes())
        return self.add_linear(f"{name}.proj", merged)

    @abstractmethod
    def _attributes(self) -> dict[str, Any]:
        """Return the attributes of the operator."""


class MultiHead(_SplitGraph):
    """ONNX Runtime's MultiHeadAttention."""

    operator = "MultiHeadAttention"

    def _attributes(self) -> dict[str, Any]:
        return {"domain": MICROSOFT, "num_heads": self.spec.heads}


class Attention23(_SplitGraph):
    """ONNX's own Attention, which came with operator set 23."""

    operator = "Attention"

    def _attributes(self) -> dict[str, Any]:
        return {"q_num_heads": self.spec.heads, "kv_num_heads": self.spec.heads}


def load_onnxruntime(weights: Weights, opset: int, graph: type[vit.VitGraph]) -> Run:
    """Return a run of the model in ONNX Runtime, on one thread, with the attention that ``graph`` writes."""
    kept = vit.GRAPHS["onnxruntime"]
    vit.GRAPHS["onnxruntime"] = graph
    try:
        exported = make_graph(weights, ("logits",), opset, "onnxruntime")
    finally:
        vit.GRAPHS["onnxruntime"] = kept
    exported.ir_version = min(exported.ir_version, 11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def load_torch(weights: Weights) -> Run:
    """Return a run of the model in torch, eager, in float32."""
    module = build_trained_vit(weights)

    @torch.inference_mode()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    return run


def measure_contestants(weights: Weights, batch: int, turns: int) -> dict[str, NDArray[np.float64]]:
    """Measure the milliseconds a batch of each contestant, (turns,) each."""
    contestants: dict[str, Run] = {
        "portable": load_onnxruntime(weights, 17, vit.GRAPHS["portable"]),
        "onnxruntime": load_onnxruntime(weights, 17, vit.GRAPHS["onnxruntime"]),
        "MultiHeadAttention": load_onnxruntime(weights, 17, MultiHead),
        "Attention, opset 23": load_onnxruntime(weights, 23, Attention23),
        "torch, eager": load_torch(weights),
    }
    images = np.random.default_rng(1).normal(size=(batch, 3, *weights.spec.image_size)).astype(np.float32)
    expected = contestants["torch, eager"](images)
    for name, run in contestants.items():
        assert np.abs(run(images) - expected).max() < 1e-4, name
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            start = time.thread_time()
            run(images)
            times[name].append((time.thread_time() - start) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}\n")
    print("| model | batch | graph | best ms | median ms | speed (quartiles) |")
    print("|---|---|---|---|---|---|")
    for name in arguments.models:
        weights = make_weights(MODELS[name])
        for batch in arguments.batches:
            times = measure_contestants(weights, batch, arguments.turns)
            for graph, values in times.items():
                low, middle, high = np.quantile(times["portable"] / values, [0.25, 0.5, 0.75])
                figures = f"{values.min():.1f} | {np.median(values):.1f} | {middle:.3f} ({low:.3f} to {high:.3f})"
                print(f"| {name} | {batch} | {graph} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

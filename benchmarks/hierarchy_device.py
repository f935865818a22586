"""A comparison of the trees and masks of the device with those of the host, and of their cost, on real attention.

    python benchmarks/hierarchy_device.py RUN [--device cpu] [--images 1024] [--blocks 6]

RUN is the folder of a pretraining run, whose images are used. Trees are compared by their parents; masks at ratio
0.75, drawn with the same ranks. Times are the best of three rounds over 64 images, on one thread of the host.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from ehm import backends
from ehm.backends.torch.engine import hierarchy as on_device
from ehm.backends.torch.engine import masks as masks_on_device
from ehm.config import DataConfig, ModelSource
from ehm.data import EvalTransform, open_source
from ehm.masking import balance, build_hierarchy, draw_ranks, hierarchical_mask
from ehm.storage.checkpoint import open_checkpoint

DEPTHS = (0.1, 0.3, 0.5, 0.8)
PIECE = 64
"""Images that are compared and timed at once."""


def compute_similarities(run: str, device: str, count: int, blocks: int) -> np.ndarray:
    """Compute the similarities of the first ``count`` images in a shuffled order: (count, N, N)."""
    meta = open_checkpoint(run).metadata
    encoder = backends.get(device).create_encoder(ModelSource(init=run))
    source = open_source(DataConfig(**meta["config"]["data"]), "train")
    transform = EvalTransform(encoder.image_size)
    order = np.random.default_rng(0).permutation(len(source))[:count].tolist()
    pieces = []
    for start in range(0, len(order), PIECE):
        images = np.stack([transform(source.load(index)) for index in order[start : start + PIECE]])
        pieces.append(encoder.compute_similarity(images, blocks))
    return np.concatenate(pieces)


def count_differences(similarity: np.ndarray, balanced: bool, device: torch.device) -> list[int]:
    """Count the images whose trees differ, and whose masks differ at each depth."""
    counts = np.zeros(1 + len(DEPTHS), int)
    for start in range(0, len(similarity), PIECE):
        part = similarity[start : start + PIECE]
        on_chip = torch.from_numpy(part).to(device)
        host = build_hierarchy(balance(part) if balanced else part)
        tree = on_device.build_hierarchy(on_device.balance(on_chip) if balanced else on_chip)
        ranks = draw_ranks(np.random.default_rng(start), len(part), host.patches)
        differing = [host.parent != tree.parent.cpu().numpy()]
        for depth in DEPTHS:
            mask = masks_on_device.hierarchical_mask(tree, depth, 0.75, torch.from_numpy(ranks).to(device))
            differing.append(hierarchical_mask(host, depth, 0.75, ranks=ranks) != mask.cpu().numpy())
        counts += [nodes.any(axis=1).sum() for nodes in differing]
    return counts.tolist()


def measure_microseconds(build: Callable[[], object]) -> float:
    """Measure the microseconds an image, the best of three rounds."""
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        build()
        best = min(best, time.perf_counter() - start)
    return best / PIECE * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    similarity = compute_similarities(arguments.run, arguments.device, arguments.images, arguments.blocks)
    device = torch.device("cpu" if arguments.device == "auto" else arguments.device)
    print(f"{len(similarity)} images, {similarity.shape[1]} patches, device {device}\n")
    columns = " | ".join(f"at {depth}" for depth in DEPTHS)
    print(f"| similarity | trees differ | masks differ {columns} | host, µs | device, µs |\n|{'---|' * 8}")
    for name, balanced in (("raw", False), ("balanced", True)):
        first = balance(similarity[:PIECE]) if balanced else similarity[:PIECE]
        there = torch.from_numpy(first).to(device)
        counts = " | ".join(map(str, count_differences(similarity, balanced, device)))
        host = measure_microseconds(lambda first=first: build_hierarchy(first, threads=1))
        own = measure_microseconds(lambda there=there: on_device.build_hierarchy(there).height.cpu())
        print(f"| {name} | {counts} | {host:.0f} | {own:,.0f} |")


if __name__ == "__main__":
    main()

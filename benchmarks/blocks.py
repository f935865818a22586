"""Compare the trees that fewer blocks give with those of all blocks, by the adjusted Rand index between their parts.

    python benchmarks/blocks.py RUN [RUN ...] [--images 500] [--device cpu]

The first `mask.blocks` blocks give the similarity that trees are built of, and the pass through them is what evolved
masks cost. The trees that a pretrained encoder gives with 1, 2, ... blocks are cut at some depths, and their parts
compared with those of the trees of all blocks by the adjusted Rand index (Hubert and Arabie, 1985): 1 if they are
equal, 0 on average for random parts. The table has means over the runs and their images, which come from the validation
part of the source that the run was trained on, or from its training part if it has no other.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from ehm import backends, masking
from ehm.backends.base import Encoder
from ehm.config import ModelSource, TrainConfig, load_config
from ehm.data import EvalTransform, open_source
from ehm.errors import DataError

DEPTHS = (0.25, 0.5, 0.75)
"""Shares of a tree's height at which it is cut."""
KINDS = {"none": "raw attention", "sinkhorn": "balanced"}
BATCH = 100


def read_images(config: TrainConfig, count: int) -> NDArray[np.uint8]:
    """Read ``count`` images of the source that a run of ``config`` was trained on, spread over it."""
    try:
        source = open_source(config.data, "val")
    except DataError:
        source = open_source(config.data, "train")
    transform = EvalTransform(config.spec.image_size)
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    return np.stack([np.asarray(transform(source.load(int(index)))) for index in chosen])


def compute_similarities(encoder: Encoder, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
    """Compute the similarity of the first ``blocks`` blocks, batch by batch."""
    pieces = []
    for start in range(0, len(images), BATCH):
        pieces.append(encoder.compute_similarity(images[start : start + BATCH], blocks))
    return np.concatenate(pieces)


def cut_trees(similarity: NDArray[np.float32], balance: str, depth: float) -> NDArray[np.int32]:
    """Build trees and return the part of each patch at ``depth``: (B, N)."""
    if balance == "sinkhorn":
        similarity = masking.balance(similarity)
    hierarchy = masking.build_hierarchy(similarity)
    return hierarchy.cut(masking.masking_level(depth, hierarchy.height))


def compare_blocks(run: Path, device: str, count: int) -> dict[tuple[str, int, float], float]:
    """Return the mean index of ``run`` by the kind of similarity, the number of blocks and the depth of the cut."""
    config = load_config(TrainConfig, run / "config.yaml")
    assert isinstance(config.spec.blocks, int)
    encoder = backends.get(device).create_encoder(ModelSource(init=str(run)))
    images = read_images(config, count)
    similarities = {}
    for blocks in range(1, config.spec.blocks + 1):
        similarities[blocks] = compute_similarities(encoder, images, blocks)
    found = {}
    for balance in KINDS:
        for depth in DEPTHS:
            reference = cut_trees(similarities[config.spec.blocks], balance, depth)
            for blocks, similarity in similarities.items():
                parts = cut_trees(similarity, balance, depth)
                scores = [adjusted_rand_score(*pair) for pair in zip(reference, parts, strict=True)]
                found[balance, blocks, depth] = statistics.mean(scores)
    return found


def print_table(results: list[dict[tuple[str, int, float], float]]) -> None:
    """Print the means over runs: a row for each number of blocks, a column for each kind and depth."""
    headings = [f"{title}, depth {depth:g}" for title in KINDS.values() for depth in DEPTHS]
    print("| blocks | " + " | ".join(headings) + " |")
    print("|---" * (len(headings) + 1) + "|")
    for blocks in sorted({blocks for _, blocks, _ in results[0]}):
        cells = []
        for balance in KINDS:
            for depth in DEPTHS:
                cells.append(f"{statistics.mean(found[balance, blocks, depth] for found in results):.2f}")
        print(f"| {blocks} | " + " | ".join(cells) + " |")


def main() -> None:
    """Compare the trees of each run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print_table([compare_blocks(run, args.device, args.images) for run in args.runs])


if __name__ == "__main__":
    main()

"""Hierarchies of a Swin from two similarities: its attention between cells, and the cosine of its features.

    pip install scikit-image
    python benchmarks/swin_trees.py            trains what is missing under runs/swin_trees, prints the table
    python benchmarks/swin_trees.py --picture docs/images/swin_trees.png

To measure hierarchies, the parts of an image have to be known. So images are composed: a map of 6 x 6 cells is divided
into four regions (each cell belongs to the nearest of four seeds), and each region shows a crop of another photograph.
SciPy cuts a tree into four parts, which are compared with the regions by the adjusted Rand index (Hubert and Arabie,
1985): 1 if they are equal, 0 on average for random parts. The table also has the tree's height and its largest part at
half of it.

The photographs come with scikit-image. The Swin sees crops of their left three fifths in pretraining
(SimMIM with random masks, three seeds); images are composed of their right two fifths. It has three stages: 24 x 24, 12
x 12 and 6 x 6 tokens in windows of 6, as the last three of SimMIM's Swin-B at 192 pixels.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import adjusted_rand_score

import ehm
from ehm import backends, masking
from ehm.analysis.draw import draw_partition
from ehm.analysis.mosaic import Tile, compose_mosaic
from ehm.config import TrainConfig
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.writing import replace_folder

ROOT = Path("runs/swin_trees")
CROPS = ROOT / "crops"
SEEDS = (0, 1, 2)
SIDE = 96
"""Side of an image in pixels."""
CELLS = 6
"""Cells of an image down and across."""
REGIONS = 4
IMAGES = 200
"""Images that a tree is measured on."""
NAMES = ["astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field"]
NAMES += ["immunohistochemistry", "moon", "retina", "rocket", "text"]
BLOCKS = {2: "stage 1 (windows of 24 pixels)", 4: "stages 1 and 2 (48)", 6: "all three stages (96)"}
SETTINGS: dict[str, Any] = {
    "objective": "simmim",
    "encoder": "swin_tiny",
    "masking": "random",
    "image_size": SIDE,
    "model": {"width": 32, "depth": [2, 2, 2], "heads": [2, 4, 8]},
    "mask": {"unit": 16},
    "data": {"source": str(CROPS), "workers": 0},
    "optim": {"epochs": 25, "batch_size": 64, "base_lr": 2e-3, "warmup_epochs": 3},
    "run": {"trackers": [], "checkpoint_every": 10, "keep": 1},
}


def load_photographs() -> list[NDArray[np.uint8]]:
    """Load real images (H, W, 3), at most 512 pixels wide or high."""
    from skimage import data

    found = []
    for name in NAMES:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        image.thumbnail((512, 512))
        found.append(np.asarray(image))
    return found


def make_crops(count: int = 1500) -> None:
    """Cut crops of the left parts, for pretraining."""
    if CROPS.is_dir():
        return
    rng = np.random.default_rng(0)
    sources = load_photographs()
    with replace_folder(CROPS) as folder:
        for index in range(count):
            image = sources[index % len(sources)]
            left = image[:, : image.shape[1] * 3 // 5]
            Image.fromarray(cut_square(left, 128, rng)).save(folder / f"{index:04d}.png")


def cut_square(image: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a random square of ``side`` pixels, or a smaller one if the image is smaller, and resize it."""
    size = min(side, *image.shape[:2])
    top = int(rng.integers(image.shape[0] - size + 1))
    left = int(rng.integers(image.shape[1] - size + 1))
    square = Image.fromarray(image[top : top + size, left : left + size])
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def compose_images(count: int, seed: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Compose images of the right parts, (count, 96, 96, 3); also returns the region of each cell, (count, 36).

    Each region has four cells at least.
    """
    rng = np.random.default_rng(seed)
    right = [image[:, image.shape[1] * 3 // 5 :] for image in load_photographs()]
    positions = np.stack(np.divmod(np.arange(CELLS**2), CELLS), axis=1)
    images = []
    regions = []
    while len(images) < count:
        seeds = rng.uniform(0, CELLS - 1, (REGIONS, 2))
        region = ((positions[:, None] - seeds) ** 2).sum(2).argmin(1)
        if np.bincount(region, minlength=REGIONS).min() < 4:
            continue
        layers = np.stack([cut_square(right[i], SIDE, rng) for i in rng.permutation(len(right))[:REGIONS]])
        pixel_regions = np.kron(region.reshape(CELLS, CELLS), np.ones((SIDE // CELLS, SIDE // CELLS), int))
        images.append(np.take_along_axis(layers, pixel_regions[None, ..., None], axis=0)[0])
        regions.append(region)
    return np.stack(images), np.stack(regions)


def compute_similarities(
    folder: Path | None, images: NDArray[np.uint8], kind: str, blocks: int, seed: int
) -> NDArray[Any]:
    """Compute the similarities of the run in ``folder``, or of an untrained model: (B, 36, 36)."""
    mask = {**SETTINGS["mask"], "similarity": kind, "blocks": blocks}
    config = TrainConfig.model_validate({**SETTINGS, "mask": mask, "run": {**SETTINGS["run"], "seed": seed}})
    learner = backends.get("cpu").create_learner(config)
    if folder is not None:
        learner.load(open_checkpoint(folder).state)
    return np.concatenate(list(learner.prepare_batch(images).compute_similarity()))


def compare_colours(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute a similarity that has learnt nothing, by the distance of the mean colours of two cells."""
    size = SIDE // CELLS
    colours = images.reshape(len(images), CELLS, size, CELLS, size, 3).mean(axis=(2, 4)).reshape(len(images), -1, 3)
    distance = np.linalg.norm(colours[:, :, None] - colours[:, None], axis=-1) / 255
    return (1 - distance / 2).astype(np.float32)


def compare_positions(count: int) -> NDArray[np.float32]:
    """Compute a similarity that does not even see the image, by the distance of two cells."""
    positions = np.stack(np.divmod(np.arange(CELLS**2), CELLS), axis=1)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return np.broadcast_to((1 / (1 + distance)).astype(np.float32), (count, CELLS**2, CELLS**2))


def measure_trees(similarity: NDArray[Any], regions: NDArray[np.int64], balance: str) -> dict[str, float]:
    """Measure the trees of a similarity; returns means over the images."""
    if balance == "sinkhorn":
        similarity = masking.balance(similarity)
    tree = masking.build_hierarchy(similarity)
    indices = [adjusted_rand_score(region, cut_into_four(tree, b)) for b, region in enumerate(regions)]
    half = tree.cut(np.ceil(tree.height / 2).astype(int))
    largest = [np.bincount(row).max() / len(row) for row in half]
    return {"ari": float(np.mean(indices)), "height": float(tree.height.mean()), "largest": float(np.mean(largest))}


def train_missing() -> dict[int, Path]:
    """Train the runs that are missing; return the folder of each seed."""
    make_crops()
    folders = {seed: ROOT / f"seed-{seed}" for seed in SEEDS}
    for seed, folder in folders.items():
        if not (folder / "encoder.safetensors").is_file():
            settings = {**SETTINGS, "run": {**SETTINGS["run"], "seed": seed}}
            ehm.train(TrainConfig.model_validate(settings), device="cpu", out=folder, resume=folder.is_dir())
    return folders


def make_table() -> list[str]:
    """Make the lines of the table, a row for each similarity."""
    folders = train_missing()
    images, regions = compose_images(IMAGES)
    lines = [
        f"{IMAGES} composed images, {len(SEEDS)} seeds: mean ± standard deviation over seeds",
        "",
        "| similarity | of blocks in | ARI, untrained | ARI, trained | balanced: ARI, untrained | ARI, trained | "
        "height (balanced) | largest part (balanced) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("attention", "cosine"):
        for blocks, stages in BLOCKS.items():
            cells = []
            trained_rows = {}
            for balance in ("none", "sinkhorn"):
                for trained in (False, True):
                    rows = []
                    for seed, folder in folders.items():
                        run = folder if trained else None
                        similarity = compute_similarities(run, images, kind, blocks, seed)
                        rows.append(measure_trees(similarity, regions, balance))
                    cells.append(format_spread([row["ari"] for row in rows]))
                    trained_rows[balance] = rows  # the trained ones come last
            for key, form in (("height", ".1f"), ("largest", ".0%")):
                raw = statistics.mean(row[key] for row in trained_rows["none"])
                balanced = statistics.mean(row[key] for row in trained_rows["sinkhorn"])
                cells.append(f"{raw:{form}} ({balanced:{form}})")
            lines.append(f"| {kind} | {stages} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    baselines = {
        "mean colour of cells": compare_colours(images),
        "nearness of cells": compare_positions(len(images)),
    }
    for name, similarity in baselines.items():
        raw = measure_trees(similarity, regions, "none")
        even = measure_trees(similarity, regions, "sinkhorn")
        lines.append(
            f"| {name} | – | {raw['ari']:.3f} | – | {even['ari']:.3f} | – | "
            f"{raw['height']:.1f} ({even['height']:.1f}) | {raw['largest']:.0%} ({even['largest']:.0%}) |"
        )
        print(lines[-1], flush=True)
    return lines


def cut_into_four(tree: masking.Hierarchy, b: int) -> NDArray[np.int64]:
    """Cut the tree of image ``b`` into four parts; return the part of each cell: (36,)."""
    linkage = tree.linkage(b)
    linkage[:, 2] = np.maximum(linkage[:, 2], 0)  # a balanced similarity may exceed 1 by rounding
    return fcluster(linkage, REGIONS, "maxclust")


def format_spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def draw_picture(path: Path, count: int = 4) -> None:
    """Draw composed images, their regions, and the four parts that each similarity finds, for the first seed."""
    images, regions = compose_images(count, seed=2)
    headings = ["image", "regions"]
    rows = []
    grids: list[NDArray[Any]] = [regions]
    for kind in ("attention", "cosine"):
        for blocks in (2, 6):
            similarity = compute_similarities(ROOT / "seed-0", images, kind, blocks, SEEDS[0])
            tree = masking.build_hierarchy(masking.balance(similarity))
            grids.append(np.stack([cut_into_four(tree, b) for b in range(count)]))
            headings.append(f"{kind}, {blocks} blocks")
    colours = np.array([(230, 75, 60), (60, 140, 230), (70, 180, 90), (240, 190, 50), (150, 90, 200)], np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((2 * SIDE, 2 * SIDE))) for image in images]
    for b, image in enumerate(large):
        row = [Tile(image)]
        for grid in grids:
            score = adjusted_rand_score(regions[b], grid[b])
            tile = draw_partition(image, grid[b].reshape(CELLS, CELLS), colours)
            row.append(Tile(tile, (f"ARI {score:.2f}",) if grid is not regions else ()))
        rows.append(row)
    title = "Four parts of composed images, by a Swin's similarity"
    compose_mosaic(title, ["Balanced; pretrained by SimMIM."], headings, rows).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw a picture instead of measuring; needs the runs")
    args = parser.parse_args()
    if args.picture:
        draw_picture(args.picture)
    else:
        print("\n".join(make_table()))


if __name__ == "__main__":
    main()

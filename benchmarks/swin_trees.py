"""Which similarity of a Swin gives the better hierarchies: its attention between cells, or the cosine of its features?

    pip install scikit-image
    python benchmarks/swin_trees.py            trains what is missing under runs/swin_trees, prints the table
    python benchmarks/swin_trees.py --picture docs/images/swin_trees.png

The measure needs to know the parts. So images are composed: a map of 6 x 6 cells is divided into four regions (each
cell belongs to the nearest of four seeds), and each region shows a crop of another photograph. A tree is cut into four
parts by SciPy, and compared with the regions by the adjusted Rand index (Hubert and Arabie, 1985): 1 where they are
equal, 0 on average for parts drawn at random. Beside it stand the tree's height and its largest part at half of it.

The photographs are those in the wheel of scikit-image. The Swin sees crops of their left three fifths in pretraining
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
SIDE, CELLS, REGIONS, IMAGES = 96, 6, 4, 200
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
    "run": {"tensorboard": False, "checkpoint_every": 10, "keep": 1},
}


def photographs() -> list[NDArray[np.uint8]]:
    """Real images (H, W, 3), at most 512 pixels wide or high."""
    from skimage import data

    found = []
    for name in NAMES:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        image.thumbnail((512, 512))
        found.append(np.asarray(image))
    return found


def make_crops(count: int = 1500) -> None:
    """Crops of the left parts, for pretraining."""
    if CROPS.is_dir():
        return
    rng, sources = np.random.default_rng(0), photographs()
    with replace_folder(CROPS) as folder:
        for index in range(count):
            image = sources[index % len(sources)]
            left = image[:, : image.shape[1] * 3 // 5]
            Image.fromarray(crop(left, 128, rng)).save(folder / f"{index:04d}.png")


def crop(image: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random square of ``side`` pixels, or of what there is, resized."""
    size = min(side, *image.shape[:2])
    top, left = (int(rng.integers(extent - size + 1)) for extent in image.shape[:2])
    square = Image.fromarray(image[top : top + size, left : left + size])
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def compose(count: int, seed: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (count, 96, 96, 3) of the right parts, and the region of each cell (count, 36), four or more to each."""
    rng, sources = np.random.default_rng(seed), photographs()
    right = [image[:, image.shape[1] * 3 // 5 :] for image in sources]
    places = np.stack(np.divmod(np.arange(CELLS**2), CELLS), axis=1)
    images, regions = [], []
    while len(images) < count:
        seeds = rng.uniform(0, CELLS - 1, (REGIONS, 2))
        region = ((places[:, None] - seeds) ** 2).sum(2).argmin(1)
        if np.bincount(region, minlength=REGIONS).min() < 4:
            continue
        layers = np.stack([crop(right[i], SIDE, rng) for i in rng.permutation(len(right))[:REGIONS]])
        where = np.kron(region.reshape(CELLS, CELLS), np.ones((SIDE // CELLS, SIDE // CELLS), int))
        images.append(np.take_along_axis(layers, where[None, ..., None], axis=0)[0])
        regions.append(region)
    return np.stack(images), np.stack(regions)


def similarities(folder: Path | None, images: NDArray[np.uint8], kind: str, blocks: int, seed: int) -> NDArray[Any]:
    """Of the run in ``folder``, or of an untrained model: (B, 36, 36)."""
    mask = {**SETTINGS["mask"], "similarity": kind, "blocks": blocks}
    config = TrainConfig.model_validate({**SETTINGS, "mask": mask, "run": {**SETTINGS["run"], "seed": seed}})
    learner = backends.get("cpu").create_learner(config)
    if folder is not None:
        learner.load(open_checkpoint(folder).state)
    return np.concatenate(list(learner.prepare_batch(images).compute_similarity()))


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A similarity that has learnt nothing: by the distance of the mean colours of two cells."""
    size = SIDE // CELLS
    colours = images.reshape(len(images), CELLS, size, CELLS, size, 3).mean(axis=(2, 4)).reshape(len(images), -1, 3)
    distance = np.linalg.norm(colours[:, :, None] - colours[:, None], axis=-1) / 255
    return (1 - distance / 2).astype(np.float32)


def nearness(count: int) -> NDArray[np.float32]:
    """One that does not even see the image: by the distance of two cells."""
    places = np.stack(np.divmod(np.arange(CELLS**2), CELLS), axis=1)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return np.broadcast_to((1 / (1 + distance)).astype(np.float32), (count, CELLS**2, CELLS**2))


def judge(similarity: NDArray[Any], regions: NDArray[np.int64], balance: str) -> dict[str, float]:
    """Means over the images."""
    if balance == "sinkhorn":
        similarity = masking.balance(similarity)
    tree = masking.build_hierarchy(similarity)
    indices = [adjusted_rand_score(region, four_parts(tree, b)) for b, region in enumerate(regions)]
    half = tree.cut(np.ceil(tree.height / 2).astype(int))
    largest = [np.bincount(row).max() / len(row) for row in half]
    return {"ari": float(np.mean(indices)), "height": float(tree.height.mean()), "largest": float(np.mean(largest))}


def table() -> list[str]:
    """Train what is missing, and a row for each similarity."""
    make_crops()
    folders = [ROOT / f"seed-{seed}" for seed in SEEDS]
    for seed, folder in zip(SEEDS, folders, strict=True):
        if not (folder / "encoder.safetensors").is_file():
            settings = {**SETTINGS, "run": {**SETTINGS["run"], "seed": seed}}
            ehm.train(TrainConfig.model_validate(settings), device="cpu", out=folder, resume=folder.is_dir())
    images, regions = compose(IMAGES)
    lines = [
        f"{IMAGES} composed images, {len(SEEDS)} seeds: mean ± standard deviation over seeds",
        "",
        "| similarity | of blocks in | ARI, untrained | ARI, trained | balanced: ARI, untrained | ARI, trained | "
        "height (balanced) | largest part (balanced) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("attention", "cosine"):
        for blocks, where in BLOCKS.items():
            cells, last = [], []
            for balance in ("none", "sinkhorn"):
                for trained in (False, True):
                    rows = [
                        judge(similarities(folder if trained else None, images, kind, blocks, seed), regions, balance)
                        for seed, folder in zip(SEEDS, folders, strict=True)
                    ]
                    cells.append(spread([row["ari"] for row in rows]))
                    last.append(rows)
            figures = [
                f"{statistics.mean(row[key] for row in last[1]):{form}} ("
                f"{statistics.mean(row[key] for row in last[3]):{form}})"
                for key, form in (("height", ".1f"), ("largest", ".0%"))
            ]
            lines.append(f"| {kind} | {where} | " + " | ".join(cells + figures) + " |")
            print(lines[-1], flush=True)
    for name, similarity in (("mean colour of cells", pixels(images)), ("nearness of cells", nearness(len(images)))):
        raw, even = (judge(similarity, regions, balance) for balance in ("none", "sinkhorn"))
        lines.append(
            f"| {name} | – | {raw['ari']:.3f} | – | {even['ari']:.3f} | – | "
            f"{raw['height']:.1f} ({even['height']:.1f}) | {raw['largest']:.0%} ({even['largest']:.0%}) |"
        )
        print(lines[-1], flush=True)
    return lines


def four_parts(tree: masking.Hierarchy, b: int) -> NDArray[np.int64]:
    """The part that each cell belongs to where the tree of image ``b`` is cut into four: (36,)."""
    linkage = tree.linkage(b)
    linkage[:, 2] = np.maximum(linkage[:, 2], 0)  # a balanced similarity may exceed 1 by rounding
    return fcluster(linkage, REGIONS, "maxclust")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def picture(path: Path, count: int = 4) -> None:
    """Composed images, their regions, and the four parts that each similarity finds, of the first seed."""
    images, regions = compose(count, seed=2)
    headings, columns = ["image", "regions"], []
    grids: list[NDArray[Any]] = [regions]
    for kind in ("attention", "cosine"):
        for blocks in (2, 6):
            tree = masking.build_hierarchy(
                masking.balance(similarities(ROOT / "seed-0", images, kind, blocks, SEEDS[0]))
            )
            grids.append(np.stack([four_parts(tree, b) for b in range(count)]))
            headings.append(f"{kind}, {blocks} blocks")
    colours = np.array([(230, 75, 60), (60, 140, 230), (70, 180, 90), (240, 190, 50), (150, 90, 200)], np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((2 * SIDE, 2 * SIDE))) for image in images]
    for b, image in enumerate(large):
        row = [Tile(image)]
        for grid in grids:
            score = adjusted_rand_score(regions[b], grid[b])
            tile = draw_partition(image, grid[b].reshape(CELLS, CELLS), colours)
            row.append(Tile(tile, (f"ARI {score:.2f}",) if grid is not regions else ()))
        columns.append(row)
    title, notes = "Four parts of composed images, by a Swin's similarity", ["Balanced; pretrained by SimMIM."]
    compose_mosaic(title, notes, headings, columns).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw one instead of measuring; needs the runs")
    args = parser.parse_args()
    if args.picture:
        picture(args.picture)
    else:
        print("\n".join(table()))


if __name__ == "__main__":
    main()

"""Go on from an encoder on other images: what helps and what harms, on two halves of Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    OMP_NUM_THREADS=1 python benchmarks/continue.py            runs what is missing under runs/continue, prints tables
    OMP_NUM_THREADS=1 python benchmarks/continue.py --quick    one seed and a few steps: does everything work?

A small ViT is pretrained by MAE with random masks on shoes, bags and trousers. Each arm then goes on from it with the
same number of steps on tops (shirts, coats and others), without labels, by one objective, masking or setting. Frozen
features are measured before, half-way and after by k-NN and by a linear probe on tops, and by k-NN on what was
pretrained on, which may be forgotten. The control "from scratch" takes the same steps from random weights.

Runs of one seed share the pretrained weights and the order of the images, so differences are paired by seed; intervals
are Student's t. Learning rates were chosen by the loss of random masks, and nothing by a measurement below.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study_tables import format_difference, format_spread

import ehm
from ehm import backends
from ehm.analysis.neighbours import vote_by_neighbours
from ehm.config import DataConfig, ModelSource
from ehm.data import Split, open_source
from ehm.storage.writing import write_json

ROOT = Path("runs/continue")
SEEDS = (0, 1, 2)
FIRST_HALF = ("Trouser", "Sandal", "Sneaker", "Bag", "Ankle boot")
SECOND_HALF = ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt")
"""The classes that are hard to tell apart, so that there is something to gain."""
IMAGES_PER_CLASS = 300
"""Images of each class whose features are searched and probed, and as many that are classed: the first ones."""
NEIGHBOURS = 20
BATCH_SIZE = 64
STEPS_PER_EPOCH = 30_000 // BATCH_SIZE
"""Five classes have 30,000 images."""
PRETRAINING_STEPS = 3 * STEPS_PER_EPOCH
STEPS = 200
QUICK_STEPS = 8

COMMON = [
    "encoder=vit_tiny",
    "image_size=28",
    "patch_size=4",
    "model.width=96",
    "model.depth=6",
    "model.heads=3",
    "model.decoder_width=64",
    "model.decoder_depth=2",
    "model.decoder_heads=2",
    "mask.blocks=3",
    "data.source=fashion-mnist",
    "data.workers=0",
    "data.crop_scale=[0.5, 1]",
    f"optim.batch_size={BATCH_SIZE}",
    "run.log_every=50",
    "run.trackers=[]",
]
MAE = ["objective=mae", "model.norm_pix_loss=false"]
"""Patches of 4 x 4 pixels are often of one grey value, and nothing is left of them if they are normalised."""
FEATURE_START = ["objective=feature", "model.teacher=start"]
FEATURE_EMA = ["objective=feature", "model.teacher=ema"]
RANDOM = ["masking=random"]
EVOLVED = ["masking=evolved", "mask.depth_range=[0,0.6]"]
RATE = "optim.base_lr=6e-3"
SLOW_RATE = "optim.base_lr=1.5e-3"
START = [*MAE, *RANDOM]
PRETRAINED = "pretrained"
SCRATCH = "scratch"

ARMS: dict[str, tuple[str, list[str]]] = {
    "mae-random": ("`mae`, random masks", [*MAE, *RANDOM]),
    "mae-evolved": ("`mae`, evolved masks", [*MAE, *EVOLVED]),
    "start-random": ("`feature`, teacher `start`, random masks", [*FEATURE_START, *RANDOM]),
    "start-evolved": ("`feature`, teacher `start`, evolved masks", [*FEATURE_START, *EVOLVED]),
    "ema-random": ("`feature`, teacher `ema`, random masks", [*FEATURE_EMA, *RANDOM]),
    "ema-evolved": ("`feature`, teacher `ema`, evolved masks", [*FEATURE_EMA, *EVOLVED]),
    "start-slow": (
        "`feature`, teacher `start`, random masks, a quarter of the rate",
        [*FEATURE_START, *RANDOM, SLOW_RATE],
    ),
    "mae-slow": ("`mae`, random masks, a quarter of the rate", [*MAE, *RANDOM, SLOW_RATE]),
    "mae-decay": ("`mae`, random masks, `layer_decay` 0.75", [*MAE, *RANDOM, "layer_decay=0.75"]),
    "mae-freeze": ("`mae`, random masks, `model.freeze` 3 of 6", [*MAE, *RANDOM, "model.freeze=3"]),
    "mae-lora": ("`mae`, random masks, `lora.rank` 8", [*MAE, *RANDOM, "lora.rank=8"]),
    SCRATCH: ("from scratch by `mae`, random masks", [*MAE, *RANDOM]),
}
COMPARISONS = (
    ("mae-evolved", "mae-random"),
    ("start-evolved", "start-random"),
    ("ema-evolved", "ema-random"),
    ("start-random", "mae-random"),
    ("ema-random", "mae-random"),
    ("start-slow", "start-random"),
    ("start-slow", "mae-slow"),
    ("mae-slow", "mae-random"),
    ("mae-decay", "mae-random"),
    ("mae-freeze", "mae-random"),
    ("mae-lora", "mae-random"),
    ("mae-random", SCRATCH),
)
"""Each arm with the arm that it is compared with, which differs in one thing."""
TITLES = {PRETRAINED: "before", **{arm: title for arm, (title, _) in ARMS.items()}}
MEASURES = {"knn": "k-NN", "linear": "linear probe", "first_knn": "k-NN on the first half"}


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, 28, 28, 3) and their class numbers (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Half:
    """The images of one half of the classes: those that are searched, and those that are classed."""

    train: LabelledImages
    test: LabelledImages


def run_missing(root: Path, arms: Sequence[str], seeds: Sequence[int], steps: int, pretraining_steps: int) -> None:
    """Train and measure what has no result yet, seed by seed."""
    first_half = read_half(FIRST_HALF)
    second_half = read_half(SECOND_HALF)
    for seed in seeds:
        pretrained = root / f"{PRETRAINED}-{seed}"
        for arm in (PRETRAINED, *arms):
            folder = root / f"{arm}-{seed}"
            if (folder / "result.json").is_file():
                continue
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
            started = time.perf_counter()
            result: dict[str, Any] = {}
            if arm == PRETRAINED:
                train(START, FIRST_HALF, seed, pretraining_steps, folder)
            else:
                first_weights = [] if arm == SCRATCH else [f"model.init={pretrained}"]
                train([*ARMS[arm][1], *first_weights], SECOND_HALF, seed, steps, folder)
                half_way = folder / "checkpoints" / f"step-{steps // 2:08d}"
                result["half_way"] = measure_encoder(half_way, second_half, first_half)
            result["end"] = measure_encoder(folder, second_half, first_half)
            result["seconds"] = time.perf_counter() - started
            write_json(folder / "result.json", result)


def train(overrides: Sequence[str], classes: Sequence[str], seed: int, steps: int, out: Path) -> None:
    """Pretrain on ``classes``, with a checkpoint half-way."""
    settings = [
        *COMMON,
        RATE,
        *overrides,  # later settings win
        f"data.classes=[{', '.join(classes)}]",
        f"optim.steps={steps}",
        f"optim.warmup_steps={steps // 10}",
        f"run.seed={seed}",
        f"run.checkpoint_every={steps / 2 / STEPS_PER_EPOCH}",
    ]
    ehm.train(device="cpu", overrides=settings, out=out)


def read_half(classes: tuple[str, ...]) -> Half:
    """Read the images of ``classes`` that features are measured on."""
    return Half(read_images(classes, "train"), read_images(classes, "val"))


def read_images(classes: tuple[str, ...], split: Split) -> LabelledImages:
    """Read the first images of each of ``classes``, uncropped: features are measured at the size of the files."""
    source = open_source(DataConfig(source="fashion-mnist", classes=classes), split)
    assert source.labels is not None
    chosen = []
    for number in range(len(classes)):
        chosen += np.flatnonzero(source.labels == number)[:IMAGES_PER_CLASS].tolist()
    pixels = np.stack([np.asarray(source.load(index)) for index in chosen])
    return LabelledImages(pixels, source.labels[chosen])


def measure_encoder(init: Path, second_half: Half, first_half: Half) -> dict[str, float]:
    """Measure top-1 accuracies of the frozen encoder ``init``: on the second half, and what is left on the first."""
    encoder = backends.get("cpu").create_encoder(ModelSource(init=str(init)))

    def extract_features(images: LabelledImages) -> Any:
        batches = np.split(images.pixels, range(256, len(images.pixels), 256))
        return np.concatenate([encoder.compute_features(batch) for batch in batches])

    return measure_features(extract_features, second_half, first_half)


def measure_pixels(second_half: Half, first_half: Half) -> dict[str, float]:
    """Measure the same of the grey values themselves, which need no encoder."""

    def flatten_pixels(images: LabelledImages) -> Any:
        return images.pixels[..., 0].reshape(len(images.pixels), -1).astype(np.float32)

    return measure_features(flatten_pixels, second_half, first_half)


def measure_features(
    extract_features: Callable[[LabelledImages], Any], second_half: Half, first_half: Half
) -> dict[str, float]:
    """Measure top-1 accuracies of features (n, D) that ``extract_features`` makes of images."""
    features = extract_features(second_half.train)
    queries = extract_features(second_half.test)
    first_features = extract_features(first_half.train)
    first_queries = extract_features(first_half.test)
    return {
        "knn": measure_neighbours(features, queries, second_half),
        "linear": measure_linear_probe(features, queries, second_half),
        "first_knn": measure_neighbours(first_features, first_queries, first_half),
    }


def measure_neighbours(features: Any, queries: Any, half: Half) -> float:
    """Measure the share of ``queries`` that their nearest neighbours class rightly, as ``ehm probe`` counts it."""
    votes = vote_by_neighbours(features, half.train.labels, queries, len(FIRST_HALF), NEIGHBOURS)
    return float((votes.argmax(axis=1) == half.test.labels).mean())


def measure_linear_probe(features: Any, queries: Any, half: Half) -> float:
    """Measure logistic regression on standardised features, with scikit-learn's penalty."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(model.fit(features, half.train.labels).score(queries, half.test.labels))


def read_results(root: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, Any]]:
    """Return the results that are there, by arm and seed."""
    results: dict[str, dict[int, Any]] = {}
    for arm in (PRETRAINED, *arms):
        results[arm] = {}
        for seed in seeds:
            path = root / f"{arm}-{seed}" / "result.json"
            if path.is_file():
                results[arm][seed] = json.loads(path.read_text())
    return results


def print_tables(results: Mapping[str, Mapping[int, Any]]) -> None:
    """Print the tables of docs/continue.md."""
    print("\nTop-1 accuracy, mean ± standard deviation over seeds:\n")
    print_row("", "seeds", *(f"{title}, half-way" for title in MEASURES.values()), *MEASURES.values(), "s a run")
    print("|---|" + "---|" * (2 + 2 * len(MEASURES)))
    for arm, runs in results.items():
        if not runs:
            continue
        half_way = [summarise(runs, "half_way", measure) for measure in MEASURES]
        end = [summarise(runs, "end", measure) for measure in MEASURES]
        seconds = statistics.mean(run["seconds"] for run in runs.values())
        print_row(TITLES[arm], str(len(runs)), *half_way, *end, f"{seconds:.0f}")
    pixels = measure_pixels(read_half(SECOND_HALF), read_half(FIRST_HALF))
    print(f"\nThe pixels themselves: {', '.join(f'{MEASURES[name]} {value:.3f}' for name, value in pixels.items())}")

    print("\nDifferences at the end, paired by seed, with 95 % intervals (Student's t):\n")
    print_row("", "compared with", *MEASURES.values())
    print("|---|---|" + "---|" * len(MEASURES))
    with_start = [(arm, PRETRAINED) for arm in ARMS]
    for arm, other in (*with_start, *COMPARISONS):
        print_comparison(results, arm, other)


def summarise(runs: Mapping[int, Any], moment: str, measure: str) -> str:
    """Return the mean of a measure over seeds with its deviation; a dash if it was not measured at that moment."""
    values = [run[moment][measure] for run in runs.values() if measure in run.get(moment, {})]
    return format_spread(values) if values else "–"


def print_comparison(results: Mapping[str, Mapping[int, Any]], arm: str, other: str) -> None:
    """Print a row with the differences of ``arm`` from ``other``, if two seeds have both."""
    runs = results.get(arm, {})
    others = results.get(other, {})
    shared = sorted(set(runs) & set(others))
    if len(shared) < 2:
        return
    cells = []
    for measure in MEASURES:
        differences = [runs[seed]["end"][measure] - others[seed]["end"][measure] for seed in shared]
        cells.append(format_difference(differences))
    print_row(TITLES[arm], TITLES[other], *cells)


def print_row(*cells: str) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one seed and {QUICK_STEPS} steps, to see that all works")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    if args.quick:
        root = ROOT / "quick"
        run_missing(root, args.arms, args.seeds[:1], QUICK_STEPS, QUICK_STEPS)
    else:
        root = ROOT
        run_missing(root, args.arms, args.seeds, STEPS, PRETRAINING_STEPS)
    print_tables(read_results(root, args.arms, args.seeds))


if __name__ == "__main__":
    main()

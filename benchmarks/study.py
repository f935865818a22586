"""A study of maskings on a small budget: every masking, the same budget, several seeds; resumable run by run.

    python benchmarks/study.py run      trains and measures the runs that are missing under runs/study
    python benchmarks/study.py report   writes docs/study.md from the runs that are there

Each run pretrains ``configs/elpv/pretrain_study.yaml`` on all photographs without labels. Its encoder is then measured
by AUC of "defective" in three ways: a linear probe and k-NN on frozen features, each by stratified 5-fold
cross-validation over all labels, and fine-tuning on one fixed split. The probe's regularisation is chosen inside the
training folds; nothing else is chosen by any score. Runs of one seed share initial weights and data order, so
differences are paired by seed.

The photographs are reduced to 128 pixels once, because decoding them in full would cost as much as training. Each run
is a process with one thread, and two work side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import study_tables
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ehm
from ehm import backends
from ehm.config import DataConfig, ModelSource
from ehm.data import EvalTransform, Loader, open_source, stratified_folds
from ehm.data.sources.folder import ElpvSource
from ehm.storage.writing import replace_folder

ROOT = Path("runs/study")
PHOTOGRAPHS = ROOT / "elpv-128"
SOURCE = [f"data.source={PHOTOGRAPHS}", "data.layout=elpv"]
REPORT = Path("docs/study.md")
SEEDS = (0, 1, 2)
FOLDS = 5
NEIGHBOURS = 20
IMAGE_SIZE = (96, 96)
CONFIG = "elpv/pretrain_study"

RAW = "mask.balance=none"
BALANCED = "mask.balance=sinkhorn"
ARMS: dict[str, tuple[str, list[str]]] = {
    "random": ("random patches (MAE)", ["masking=random"]),
    "grid": ("regular grid", ["masking=grid"]),
    "block": ("blocks (BEiT)", ["masking=block"]),
    "shallow": ("hierarchical, only shallow (0.2)", ["masking=shallow", RAW]),
    "deep": ("hierarchical, only deep (0.8)", ["masking=deep", RAW]),
    "evolved": ("evolved, raw attention (the paper)", ["masking=evolved", RAW]),
    "evolved-balanced": ("evolved, balanced", ["masking=evolved", BALANCED]),
    "evolved-short": ("evolved, raw, depth 0 to 0.6", ["masking=evolved", RAW, "mask.depth_range=[0,0.6]"]),
    "evolved-balanced-short": (
        "evolved, balanced, depth 0 to 0.6",
        ["masking=evolved", BALANCED, "mask.depth_range=[0,0.6]"],
    ),
}
# Table VIII: each objective with its own masks, and with evolved ones. Rates were chosen among 1.5e-3, 3e-3 and 6e-3 by
# the loss of its own masks after two epochs, as MAE's was.
TOKENIZER = ROOT / "tokenizer"
_SIMMIM = ["objective=simmim", "mask.unit=12"]
_BEIT = ["objective=beit", f"model.tokenizer={TOKENIZER}"]
OBJECTIVES: dict[str, tuple[str, list[str]]] = {
    "mae": ("MAE, random patches", ["masking=random"]),
    "mae-evolved": ("MAE, evolved", ["masking=evolved"]),
    "beit": ("BEiT, blocks", [*_BEIT, "masking=block"]),
    "beit-evolved": ("BEiT, evolved", [*_BEIT, "masking=evolved"]),
    "simmim": ("SimMIM, random units", [*_SIMMIM, "masking=random"]),
    "simmim-evolved": ("SimMIM, evolved", [*_SIMMIM, "masking=evolved"]),
}
FINETUNE = [
    *SOURCE,
    "data.workers=0",
    "model.image_size=96",
    "optim.epochs=3",
    "optim.warmup_epochs=1",
    "run.checkpoint_every=100",
    "run.trackers=[]",
]


def run_missing(names: list[str], seeds: list[int], jobs: int) -> None:
    """Run the arms that are missing, seed by seed, ``jobs`` processes of one thread at a time."""
    reduce_photographs()
    missing = []
    for seed in seeds:
        missing += [(name, seed) for name in names if not result_path(name, seed).is_file()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if any(name.startswith("beit") for name, _ in missing):
        train_tokenizer()

    def launch(job: tuple[str, int]) -> None:
        name, seed = job
        log = ROOT / f"{name}-{seed}.log"
        with log.open("w") as file:
            command = [sys.executable, __file__, "one", "--arms", name, "--seeds", str(seed)]
            status = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
        print(f"{name}, seed {seed}: " + ("done" if status == 0 else f"failed, see {log}"), flush=True)

    started = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        for number, _ in enumerate(pool.map(launch, missing), start=1):
            left = (time.perf_counter() - started) / number * (len(missing) - number)
            print(f"{number}/{len(missing)} runs, about {left / 60:.0f} minutes left", flush=True)


def reduce_photographs() -> None:
    """Copy ELPV at 128 x 128 pixels to ``PHOTOGRAPHS``."""
    if PHOTOGRAPHS.is_dir():
        return
    source = open_source(DataConfig(source="elpv"), "all")
    assert isinstance(source, ElpvSource)
    with replace_folder(PHOTOGRAPHS) as folder:
        (folder / "images").mkdir()
        for index in range(len(source)):
            image = source.load(index).convert("L").resize((128, 128), Image.Resampling.BICUBIC)
            image.save(folder / "images" / Path(source.name(index)).name)
        shutil.copy(source.root / "labels.csv", folder)


def train_tokenizer() -> None:
    """Train BEiT's tokenizer on the same photographs, one for all seeds."""
    ehm.train_tokenizer("elpv/tokenizer", device="cpu", overrides=SOURCE, out=TOKENIZER, resume=True)


def run_one(name: str, seed: int) -> None:
    """Train and measure one run."""
    folder = ROOT / f"{name}-{seed}"
    started = time.perf_counter()
    overrides = [*SOURCE, f"run.seed={seed}"]
    if name == "untrained":  # one step of no length: the weights that every run of this seed starts from
        overrides += ["masking=random", "run.max_steps=1"]
    else:
        overrides += (ARMS | OBJECTIVES)[name][1]
    resume = (folder / "checkpoints").is_dir()
    ehm.train(CONFIG, device="cpu", overrides=overrides, out=folder, resume=resume)
    trained = time.perf_counter() - started
    result = measure_encoder(folder, seed) | average_figures(folder)
    result |= {"pretrain_seconds": trained, "seconds": time.perf_counter() - started}
    temporary = folder / ".result.json"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(result_path(name, seed))


def result_path(name: str, seed: int) -> Path:
    return ROOT / f"{name}-{seed}" / "result.json"


def measure_encoder(folder: Path, seed: int) -> dict[str, Any]:
    """Measure the AUC in each way; the folds are the same for every run."""
    features, labels = extract_features(folder)
    fold_of = stratified_folds(labels, FOLDS, seed=0)
    linear = []
    knn = []
    for fold in range(FOLDS):
        train = fold_of != fold
        test = fold_of == fold
        linear.append(measure_linear_auc(features[train], labels[train], features[test], labels[test]))
        knn.append(measure_knn_auc(features[train], labels[train], features[test], labels[test]))
    out = folder / "finetune"
    shutil.rmtree(out, ignore_errors=True)
    tuned = ehm.finetune(
        "elpv/finetune",
        device="cpu",
        overrides=[f"model.init={folder}", f"run.seed={seed}", *FINETUNE],
        out=out,
    )
    return {
        "linear": statistics.mean(linear),
        "knn": statistics.mean(knn),
        "finetune": tuned.metrics["auc"],
        "linear_folds": linear,
        "knn_folds": knn,
    }


def extract_features(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Extract frozen features (n, D) and labels (n,) of all photographs, uncropped."""
    encoder = backends.get("cpu").create_encoder(ModelSource(init=str(folder), image_size=IMAGE_SIZE))
    source = open_source(DataConfig(source=str(PHOTOGRAPHS), layout="elpv"), "all")
    assert source.labels is not None
    with Loader(
        source, EvalTransform(IMAGE_SIZE), batch_size=128, seed=0, shuffle=False, drop_last=False, workers=0
    ) as loader:
        batches = list(loader.batches(0, loader.steps_per_epoch))
    features = np.concatenate([encoder.compute_features(batch.images) for batch in batches])
    return features, source.labels[np.concatenate([batch.indices for batch in batches])]


def measure_linear_auc(x: Any, y: Any, x_test: Any, y_test: Any) -> float:
    """Measure logistic regression; its penalty is chosen by cross-validation inside the training folds."""
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1, 1.0],
            cv=3,
            scoring="roc_auc",
            max_iter=500,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        ),
    )
    return float(roc_auc_score(y_test, model.fit(x, y).predict_proba(x_test)[:, 1]))


def measure_knn_auc(x: Any, y: Any, x_test: Any, y_test: Any) -> float:
    """Measure the share of defective cells among the nearest training cells by cosine.

    They are weighted as in DINO (temperature 0.07).
    """
    mean = x.mean(0)  # features share a large constant part that hides every angle
    cosine = scale_rows(x_test - mean) @ scale_rows(x - mean).T
    nearest = np.argpartition(-cosine, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    weight = np.exp(np.take_along_axis(cosine, nearest, 1) / 0.07)
    return float(roc_auc_score(y_test, (weight * y[nearest]).sum(1) / weight.sum(1)))


def scale_rows(rows: Any) -> Any:
    """Scale each row to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def average_figures(folder: Path) -> dict[str, float]:
    """Average the figures of the hierarchy over the run, if its masking has one."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = [key for key in ("tree_height", "largest_part", "parts") if key in lines[-1]]
    figures = {"loss": lines[-1]["loss"]}
    for key in keys:
        figures[key] = statistics.mean(line[key] for line in lines)
    return figures


def write_report(seeds: list[int]) -> None:
    """Write the tables of ``REPORT`` from the runs that are there."""
    names = ("untrained", *ARMS, *OBJECTIVES)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:
        paths = {seed: result_path(name, seed) for seed in seeds}
        results[name] = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.is_file()}
    titles = {"untrained": "untrained", **{name: arm[0] for name, arm in (ARMS | OBJECTIVES).items()}}
    text = REPORT.read_text() if REPORT.is_file() else ""
    by_masking = {name: results[name] for name in ("untrained", *ARMS)}
    by_objective = {name: results[name] for name in OBJECTIVES}
    tables = {
        "table": study_tables.compare_maskings(by_masking, titles),
        "objectives": study_tables.compare_objectives(by_objective, titles),
    }
    for mark, lines in tables.items():
        if lines:
            text = study_tables.replace_table(text, mark, lines)
            print("\n".join([*lines, ""]))
    REPORT.write_text(text)


_NAMES = ["untrained", *ARMS, *OBJECTIVES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "one", "report"])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--arms", nargs="+", choices=_NAMES, default=_NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    if args.action == "one":
        run_one(args.arms[0], args.seeds[0])
        return
    if args.action == "run":
        run_missing(args.arms, args.seeds, args.jobs)
    write_report(args.seeds)


if __name__ == "__main__":
    main()

"""Write the files of this folder, and ``expected.json`` with what the version that wrote them computed from them.

Run it in this folder with the code of the version whose files are to be kept; see README.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import ehm

CLASSES = ("red", "green")
ENCODER = {"width": 8, "depth": 1, "heads": 2}
EPOCHS = {"epochs": 4, "warmup_epochs": 1}
STEPS = {"steps": 4, "warmup_steps": 1}
PICTURE = "data/images/red/0.png"
COARSE = {"model": {**ENCODER, "init": "scratch", "image_size": 32, "patch_size": 8}}
COMMON = {
    "optim": {"batch_size": 4, "base_lr": 1.0, "dtype": "float32"},
    "run": {"tensorboard": "false", "log_every": 1, "max_steps": 3, "keep": 1},
    "data": {"source": "data/images", "workers": 0},
}
PRETRAIN = {
    "encoder": "vit_tiny",
    "image_size": 16,
    "patch_size": 4,
    "model": {**ENCODER, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
    "mask": {"blocks": 1},
    "optim": EPOCHS,
}
CLASSIFIER = {
    "model": {**ENCODER, "init": "trained/pretrain", "image_size": 16, "patch_size": 4},
    "augment": {"rand_augment": "null", "mixup": 0, "cutmix": 0, "random_erasing": 0},
    "folds": 2,
    "optim": EPOCHS,
}
SEGMENTER = {
    **COARSE,
    "data": {"source": "data", "scale": "[32, 32]"},
    "crop_size": 32,
    "inference": {"stride": 16},
    "head": {"channels": 4, "auxiliary_channels": 4},
    "optim": STEPS,
    "folds": 2,
}
DETECTOR = {
    **COARSE,
    "data": {"source": "data"},
    "min_size": "[32]",
    "max_size": 32,
    "anchor_sizes": "[8, 12, 16, 20, 24]",
    "width": 4,
    "proposals": 8,
    "detections": 4,
    "score_threshold": 0,
    "optim": {"epochs": 4, "warmup_steps": 1},
    "folds": 2,
}
EMBEDDER = {
    "model": CLASSIFIER["model"],
    "dim": 4,
    "benchmark": "data/images",
    "data": {"layout": "auto"},
    "optim": STEPS,
    "folds": 2,
}
TASKS = {"classification": CLASSIFIER, "segmentation": SEGMENTER, "detection": DETECTOR, "retrieval": EMBEDDER}
TOKENIZER = {"image_size": 16, "stride": 4, "vocabulary": 8, "width": 4, "optim": EPOCHS}


def overrides(sections):
    """Return ``sections`` over the common ones as ``--set`` takes them."""
    for name, values in COMMON.items():
        sections = {**sections, name: {**values, **sections.get(name, {})}}
    flat = []
    for name, value in sections.items():
        keys = value if isinstance(value, dict) else {None: value}
        for key, each in keys.items():
            flat.append(f"{name}.{key}={each}" if key else f"{name}={each}")
    return flat


def write_images():
    """Write eight pictures of two classes in folders of that name, their masks, and their boxes in COCO's format."""
    rng = np.random.default_rng(0)
    images = []
    annotations = []
    for number in range(8):
        label = number % 2
        name = f"{CLASSES[label]}/{number}.png"
        pixels = rng.integers(0, 6, (32, 32, 3), dtype=np.uint8) * 16
        pixels[8:24, 4:20, label] += 144
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 4:20] = 1 + label
        for kind, content in (("images", pixels), ("masks", mask)):
            path = Path("data", kind, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path, optimize=True)
        images.append({"id": number, "file_name": name, "height": 32, "width": 32})
        square = {"bbox": [4, 8, 16, 16], "area": 256, "segmentation": [[4, 8, 20, 8, 20, 24, 4, 24]]}
        annotations.append({"id": number, "image_id": number, "category_id": label, "iscrowd": 0, **square})
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path("data", "instances.json").write_text(json.dumps(content) + "\n")
    Path("data", "classes.txt").write_text("\n".join(("ground", *CLASSES)) + "\n")


def keep_checkpoint(run):
    """Remove what ``run`` leaves beside its newest checkpoint and its configuration."""
    for path in Path(run).iterdir():
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
        elif path.name not in ("checkpoints", "config.yaml"):
            shutil.rmtree(path)
    if Path(run).name in ("segmentation", "detection"):  # their optimisers' arrays are as large as all the rest
        for path in Path(run).rglob("optimizer.safetensors"):
            path.unlink()


def compute_features(source):
    """Return what the encoder of ``source`` computes from one picture."""
    heads = ["model.heads=2"] if source.endswith(".safetensors") else []  # such files do not say it
    ehm.export(source, head="features", overrides=heads, out="exported")
    (prediction,) = ehm.predict("exported", PICTURE, device="cpu")
    return prediction.features.tolist()


def measure(run):
    """Return the report of ``ehm evaluate``."""
    ehm.evaluate(run, device="cpu", out="measured")
    return json.loads(Path("measured", "metrics.json").read_text())


def main():
    """Write everything below the current folder."""
    for folder in ("data", "trained", "bundle"):
        shutil.rmtree(folder, ignore_errors=True)
    write_images()
    whole = {**PRETRAIN, "run": {**COMMON["run"], "max_steps": "null"}}
    encoder = ehm.train(device="cpu", overrides=overrides(whole), out="complete").encoder
    shutil.copy(encoder, "encoder.safetensors")
    ehm.train(device="cpu", overrides=overrides(PRETRAIN), out="trained/pretrain")
    ehm.train_tokenizer(device="cpu", overrides=overrides(TOKENIZER), out="trained/tokenizer")
    for task, sections in TASKS.items():
        ehm.finetune(task=task, device="cpu", overrides=overrides(sections), out=f"trained/{task}")
    for run in Path("trained").iterdir():
        keep_checkpoint(run)
    ehm.export("trained/classification", out="bundle")
    (prediction,) = ehm.predict("bundle", PICTURE, device="cpu")
    sources = ("encoder.safetensors", "trained/pretrain", *(f"trained/{task}" for task in TASKS))
    expected = {
        "features": {source: compute_features(source) for source in sources},
        "metrics": {task: measure(f"trained/{task}") for task in TASKS},
        "classes": prediction.as_dict()["classes"],
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for folder in ("complete", "exported", "measured"):
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

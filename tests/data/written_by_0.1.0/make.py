"""Write the files of this folder, and ``expected.json`` with what ehm 0.1.0 computed from them.

Run it in this folder with the code of 0.1.0; see README.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import ehm

CLASSES = {"red": (200, 30, 30), "green": (30, 200, 30)}
PICTURE = "data/red/0.png"
COMMON = ["data.source=data", "data.workers=0", "optim.batch_size=4", "optim.dtype=float32", "run.tensorboard=false"]
ENCODER = ["encoder=vit_tiny", "image_size=16", "patch_size=4", "model.width=8", "model.depth=1", "model.heads=2"]
DECODER = ["model.decoder_width=8", "model.decoder_depth=1", "model.decoder_heads=2", "mask.blocks=1"]
PRETRAIN = ["optim.epochs=4", "optim.warmup_epochs=1", "run.max_steps=3", "run.keep=1"]
FINETUNE = ["model.init=pretrain", "optim.epochs=20", "optim.warmup_epochs=1", "optim.base_lr=0.3", "run.keep=1"]


def draw_images():
    """Write eight images of 16 x 16 pixels, in two classes."""
    rng = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        Path("data", name).mkdir(parents=True)
        for number in range(4):
            pixels = np.clip(rng.normal(colour, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"data/{name}/{number}.png")


for place in ("data", "pretrain", "finetune", "bundle"):
    shutil.rmtree(place, ignore_errors=True)
draw_images()
ehm.train(device="cpu", overrides=[*COMMON, *ENCODER, *DECODER, *PRETRAIN], out="pretrain")
ehm.finetune(device="cpu", overrides=[*COMMON, *FINETUNE], out="finetune")
ehm.export("finetune", out="bundle")
(prediction,) = ehm.predict("bundle", PICTURE, device="cpu")
Path("expected.json").write_text(json.dumps({"version": ehm.__version__, "classes": prediction.classes}, indent=2))
# The present version needs these alone.
shutil.rmtree("finetune/best")
for path in [*Path("finetune").rglob("optimizer.safetensors"), *Path().glob("*/metrics.json*")]:
    path.unlink()

"""Image sources, augmentation, and deterministic, resumable batches. No framework inside.

source, transform = open_source(config.data, "train"), TrainTransform((224, 224))
with Loader(source, transform, batch_size=256, seed=0, shuffle=True, drop_last=True, workers=2) as loader:
    for batch in loader.batches(0, 10 * loader.steps_per_epoch):
        batch.images  # (B, H, W, 3) uint8
"""

from ehm.data.augment import RandAugment, RandomErasing
from ehm.data.decoding.decode import decode_image
from ehm.data.eval_transform import EvalTransform
from ehm.data.folds import stratified_folds
from ehm.data.loader import Batch, Loader
from ehm.data.sources.base import Source, Split
from ehm.data.sources.layouts import open_source
from ehm.data.train_transform import TrainTransform
from ehm.data.transforms import Transform

__all__ = [
    "Batch",
    "EvalTransform",
    "Loader",
    "RandAugment",
    "RandomErasing",
    "Source",
    "Split",
    "TrainTransform",
    "Transform",
    "decode_image",
    "open_source",
    "stratified_folds",
]

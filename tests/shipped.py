"""Shipped configurations: of which class each is, and what it is when made tiny."""

from ehm.config import (
    FinetuneConfig,
    LanguageTrainingConfig,
    ProbeConfig,
    StudyConfig,
    TokenizerConfig,
    TrainConfig,
    read_config,
)
from ehm.config.encoders import SwinSpec
from ehm.tasks.registry import TASKS

KINDS = {
    "finetune": FinetuneConfig,
    "probe": ProbeConfig,
    "tokenizer": TokenizerConfig,
    "language": LanguageTrainingConfig,
    "studies": StudyConfig,
}
SCALE = 4
"""The factor of pixels, in images, patches and mask units alike: grids stay what they are."""


def kind(name):
    """The class of a configuration: its task or its file or folder says, if it is not for pretraining."""
    task = read_config(name).get("task")
    if task is not None:
        return TASKS[task].config
    parts = reversed(name.split("/"))
    return next((KINDS[word] for part in parts for word in KINDS if part.startswith(word)), TrainConfig)


def tiny_training(config, tokenizer, init=None):
    """``config`` with narrow, shallow networks and small images; objective, masking and schedule stay.

    ``tokenizer`` is in place of BEiT's, and ``init`` in place of the weights that it begins with.
    """
    # patches of 14 pixels are no multiple of 4
    scale = SCALE if config.patch_size % SCALE == 0 else 2
    swin = isinstance(config.spec, SwinSpec)
    stages = (1,) * len(config.spec.depths) if swin else 2
    values = config.model_dump() | {"encoder": "swin_tiny" if swin else "vit_tiny"}
    values["image_size"] = tuple(side // scale for side in config.image_size)
    values["patch_size"] = config.patch_size // scale
    values["model"] |= {"init": init, "width": 8, "depth": stages, "heads": stages}
    values["model"] |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    values["model"] |= {"tokenizer": str(tokenizer)} if config.objective == "beit" else {}
    values["mask"] |= {"blocks": min(config.mask.blocks, 2)}
    values["mask"] |= {"unit": config.mask.unit and config.mask.unit // scale}
    values["optim"] |= {"batch_size": 2, "accumulate": 1, "dtype": "float32", "epochs": 10, "warmup_epochs": 1}
    values["optim"] |= {"steps": None, "warmup_steps": None}
    return TrainConfig.model_validate(values)


def tiny_classifier(config):
    """``config`` on a narrow, shallow ViT from random weights."""
    values = config.model_dump()
    values["model"] |= {"init": "scratch", "image_size": 16, "patch_size": 8, "width": 8, "depth": 2, "heads": 2}
    values["optim"] |= {"batch_size": 4, "accumulate": 1, "dtype": "float32"}
    return type(config).model_validate(values)


def tiny_segmenter(config):
    """``config`` on a narrow, shallow ViT from random weights, with a narrow head."""
    values = config.model_dump() | {"crop_size": 32}
    values["model"] |= {"init": "scratch", "image_size": 32, "patch_size": 8, "width": 8, "depth": 4, "heads": 2}
    values["head"] |= {"channels": 8, "auxiliary_channels": 8}
    values["inference"] |= {"stride": 21}
    values["optim"] |= {"batch_size": 4, "accumulate": 1, "dtype": "float32"}
    return type(config).model_validate(values)


def tiny_embedder(config):
    """``config`` on a narrow, shallow ViT from random weights, with a short descriptor."""
    return tiny_classifier(config.model_copy(update={"dim": 8}))


def tiny_answerer(config, language):
    """``config`` on a narrow, shallow ViT from random weights, as the eyes of the model in the folder ``language``."""
    values = tiny_classifier(config.model_copy(update={"optim": config.optim})).model_dump()
    values["resampler"] |= {"latents": 2, "depth": 1, "heads": 2, "head_width": 4}
    values["language"] |= {"source": str(language), "dtype": "float32", "most": 2}
    return type(config).model_validate(values)


def tiny_tokenizer(config):
    """``config`` with few features."""
    values = config.model_dump() | {"image_size": (4 * config.stride,) * 2, "width": config.stride}
    values["optim"] |= {"batch_size": 2, "accumulate": 1, "dtype": "float32"}
    return TokenizerConfig.model_validate(values)

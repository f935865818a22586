"""The number of floating-point operations of a shipped configuration on ImageNet-1K, counted from the shapes.

    python benchmarks/flops.py paper/table_1/evolved_100 paper/table_8/beit [...]
    python benchmarks/flops.py --encoder vit_base finetune/imagenet_vit_base_mae
    python benchmarks/flops.py --blocks 1 2 3 6 12 vit_small vit_base

One image passes through the model, forward and backward, and torch counts its matrix products and convolutions: two
operations a multiplication. Similarity or saliency is counted if the masking needs it. Everything else is left out:
trees, optimiser, data, BEiT's tokenizer, evaluation. Fine-tuning and probing are counted for the plain ViT of
``--encoder``. With ``--blocks``, MAE's step with evolved masks is compared with one with random masks, for similarities
of so many blocks (``mask.blocks``).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ehm.backends.torch.models.vit import build_vit
from ehm.backends.torch.objectives import create_objective
from ehm.backends.torch.objectives.beit import build_beit
from ehm.config import FinetuneConfig, ModelConfig, ProbeConfig, TrainConfig, encoder_spec, load_config
from ehm.config.encoders import VitSpec
from ehm.masking import split_mask, spread_mask

IMAGES = 1_281_167
"""Training images of ImageNet-1K."""
CLASSES = 1000
VOCABULARY = 8192
"""Visual tokens of DALL-E, which BEiT predicts."""
BY_SIMILARITY = ("evolved", "shallow", "deep", "epm")
BY_SALIENCY = ("attmask_high", "attmask_hint", "attmask_low", "mst")


def count_pretraining(config: TrainConfig) -> int:
    """Count the operations of one image that is masked ``mask.views`` times."""
    targets: dict[str, torch.Tensor] = {}
    objective = None
    if config.objective == "beit":  # without a tokenizer, whose own operations are not counted
        model = build_beit(config, VOCABULARY)
        targets = {"visual_tokens": torch.zeros(1, config.spec.patches, dtype=torch.int64)}
    else:
        objective = create_objective(config, torch.device("cpu"))
        model = objective.build_model()
        # an average has the sizes of the model
        objective.teacher = objective.build_teacher(model, model)
    units = config.units[0] * config.units[1]
    masks = np.tile(np.arange(units) < round(config.masks.ratio * units), (config.mask.views, 1))
    parts = split_mask(spread_mask(masks, config.units, config.unit // config.spec.stride))
    images = torch.zeros(1, 3, *config.image_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens = model.embed(images)
        with torch.no_grad():
            if config.masking in BY_SIMILARITY:
                model.compute_similarity(tokens.detach(), config.mask.blocks)
            if config.masking in BY_SALIENCY:
                model.compute_saliency(tokens.detach())
        if objective is not None:
            targets = objective.compute_targets(images)
        model(images, *(torch.from_numpy(part) for part in parts), tokens, **targets).backward()
    return int(counter.get_total_flops())


def count_downstream(config: FinetuneConfig, encoder: str) -> int:
    """Count the operations of one image: forward and, if the encoder is not frozen, backward."""
    size = config.model.image_size or (224, 224)
    spec = encoder_spec(encoder, size, config.model.patch_size, ModelConfig())
    assert isinstance(spec, VitSpec)
    model = build_vit(spec, CLASSES).requires_grad_(not config.frozen)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(1, 3, *size))
        if not config.frozen:
            logits.sum().backward()
    return int(counter.get_total_flops())


def print_blocks(encoders: list[str], counts: list[int]) -> None:
    """Print the operations of a step of MAE, with random masks and with similarities of so many blocks."""
    print("| encoder | blocks | GFLOP an image | of random |\n|---|---|---|---|")
    for encoder in encoders:
        random = count_pretraining(TrainConfig.model_validate({"encoder": encoder, "masking": "random"}))
        print(f"| {encoder} | random masks | {random / 1e9:.1f} | 1.00 |")
        for count in counts:
            settings = {"encoder": encoder, "masking": "evolved", "mask": {"blocks": count}}
            evolved = count_pretraining(TrainConfig.model_validate(settings))
            print(f"| {encoder} | {count} | {evolved / 1e9:.1f} | {evolved / random:.2f} |")


def main() -> None:
    """Print a line for each configuration, or for each number of blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="configuration, as --config takes it, or encoder")
    parser.add_argument("--encoder", default="vit_small", help="what is fine-tuned or probed (default: vit_small)")
    parser.add_argument("--blocks", nargs="+", type=int, help="NAMEs are encoders, and mask.blocks is one of these")
    args = parser.parse_args()
    if args.blocks:
        print_blocks(args.names, args.blocks)
        return
    print("| configuration | steps | images a step | GFLOP an image | FLOP |\n|---|---|---|---|---|")
    for name in args.names:
        config: FinetuneConfig | TrainConfig
        if "finetune" in name or "probe" in name:
            config = load_config(FinetuneConfig if "finetune" in name else ProbeConfig, name)
            views = 1
            operations = count_downstream(config, args.encoder)
        else:
            config = load_config(TrainConfig, name)
            views = config.mask.views
            operations = count_pretraining(config)
        batch = config.optim.batch_size
        each = operations / views
        steps = config.optim.epochs * (IMAGES * views // batch)
        print(f"| {name} | {steps:,} | {batch:,} | {each / 1e9:.2f} | {steps * batch * each:.1e} |")


if __name__ == "__main__":
    main()

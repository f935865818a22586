"""Files with the names, shapes and structure of published checkpoints, random numbers and tiny widths inside.

Names and shapes are those of microsoft's public model classes, read from their code; buffers that those register are
there too. Widths, heads and depths are ours.
"""

import sys
import types
from contextlib import contextmanager

import torch

WIDTH, HEADS, GRID, PATCH = 24, 3, 14, 16
"""The sizes of the ViTs: 224 pixels, as BEiT and SimMIM pretrain."""
SWIN_WIDTH, SWIN_DEPTHS, SWIN_HEADS, WINDOW = 8, (2, 2, 4, 2), (1, 2, 4, 8), 6
"""The sizes of the Swins: 192 pixels, as SimMIM pretrains."""
VOCABULARY = 40


def random(shapes, seed=0):
    """Tensors of ``shapes``, not small, so that each matters; those of buffers are whole numbers."""
    generator = torch.Generator().manual_seed(seed)

    def one(name, shape):
        if name.endswith(("index", "mask")):
            return torch.randint(0, 5, shape, generator=generator)
        return 0.1 * torch.randn(shape, generator=generator) + float("norm" in name and name.endswith("weight"))

    return {name: one(name, shape) for name, shape in shapes.items()}


def linear(name, inputs, outputs, bias=True):
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def mlp(name, width):
    return linear(f"{name}.fc1", width, 4 * width) | linear(f"{name}.fc2", 4 * width, width)


def beit_blocks(depth, tables=False):
    """The blocks of microsoft/unilm's BEiT and microsoft/SimMIM's ViT; ``tables`` as in fine-tuning."""
    shapes = {}
    for index in range(depth):
        name = f"blocks.{index}"
        shapes |= {f"{name}.gamma_1": (WIDTH,), f"{name}.gamma_2": (WIDTH,), **norm(f"{name}.norm1", WIDTH)}
        shapes |= {f"{name}.attn.q_bias": (WIDTH,), f"{name}.attn.v_bias": (WIDTH,)}
        if tables:
            shapes |= table(f"{name}.attn")
        shapes |= linear(f"{name}.attn.qkv", WIDTH, 3 * WIDTH, bias=False)
        shapes |= linear(f"{name}.attn.proj", WIDTH, WIDTH)
        shapes |= norm(f"{name}.norm2", WIDTH) | mlp(f"{name}.mlp", WIDTH)
    return shapes


def table(name):
    tokens = GRID * GRID + 1
    rows = (2 * GRID - 1) ** 2 + 3  # 732
    return {f"{name}.relative_position_bias_table": (rows, HEADS), f"{name}.relative_position_index": (tokens, tokens)}


def beit(depth=12):
    """BEiT's pretraining (modeling_pretrain.py)."""
    return {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        **table("rel_pos_bias"),
        **beit_blocks(depth),
        **norm("norm", WIDTH),
        **linear("lm_head", WIDTH, VOCABULARY),
    }


def beit_finetuned(depth=12, classes=5):
    """BEiT's classifier (modeling_finetune.py)."""
    shapes = {name: shape for name, shape in beit(0).items() if name.startswith(("cls_token", "patch_embed"))}
    shapes |= beit_blocks(depth, tables=True) | norm("fc_norm", WIDTH) | linear("head", WIDTH, classes)
    return shapes


def simmim_vit(depth=12):
    """SimMIM's ViT (models/simmim.py)."""
    encoder = {name: shape for name, shape in beit(depth).items() if not name.startswith("lm_head")}
    head = {"decoder.0.weight": (3 * PATCH**2, WIDTH, 1, 1), "decoder.0.bias": (3 * PATCH**2,)}
    return {**{f"encoder.{name}": shape for name, shape in encoder.items()}, **head}


def swin(classes=0):
    """microsoft/Swin-Transformer's and SimMIM's Swin (models/swin_transformer.py)."""
    shapes = {
        "patch_embed.proj.weight": (SWIN_WIDTH, 3, 4, 4),
        "patch_embed.proj.bias": (SWIN_WIDTH,),
        **norm("patch_embed.norm", SWIN_WIDTH),
    }
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
        width, side = SWIN_WIDTH * 2**stage, 48 // 2**stage
        for index in range(depth):
            name = f"layers.{stage}.blocks.{index}"
            if index % 2 and side > WINDOW:  # windows are moved
                shapes[f"{name}.attn_mask"] = ((side // WINDOW) ** 2, WINDOW**2, WINDOW**2)
            shapes |= norm(f"{name}.norm1", width)
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
            shapes[f"{name}.attn.relative_position_index"] = (WINDOW**2, WINDOW**2)
            shapes |= linear(f"{name}.attn.qkv", width, 3 * width) | linear(f"{name}.attn.proj", width, width)
            shapes |= norm(f"{name}.norm2", width) | mlp(f"{name}.mlp", width)
        if stage < len(SWIN_DEPTHS) - 1:
            name = f"layers.{stage}.downsample"
            shapes |= linear(f"{name}.reduction", 4 * width, 2 * width, bias=False) | norm(f"{name}.norm", 4 * width)
    features = SWIN_WIDTH * 2 ** (len(SWIN_DEPTHS) - 1)
    return shapes | norm("norm", features) | (linear("head", features, classes) if classes else {})


def simmim_swin():
    """SimMIM's Swin (models/simmim.py)."""
    features = SWIN_WIDTH * 2 ** (len(SWIN_DEPTHS) - 1)
    return {
        "encoder.mask_token": (1, 1, SWIN_WIDTH),
        **{f"encoder.{name}": shape for name, shape in swin().items()},
        "decoder.0.weight": (3 * 32**2, features, 1, 1),
        "decoder.0.bias": (3 * 32**2,),
    }


@contextmanager
def yacs():
    """A class that is pickled as yacs's ``CfgNode`` is, importable while this lasts, as where files are written."""

    class CfgNode(dict):
        def __init__(self, values):
            super().__init__(values)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    package.config, module.CfgNode = module, CfgNode
    sys.modules |= {"yacs": package, "yacs.config": module}
    try:
        yield CfgNode
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]


def save_simmim(tensors, path):
    """Save a checkpoint as SimMIM's ``save_checkpoint`` does."""
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    with yacs() as node:
        content = {
            "model": tensors,
            "optimizer": optimizer,
            "lr_scheduler": {"base_values": [1e-4]},
            "max_accuracy": 0.0,
            "epoch": 799,
            "config": node({"DATA": node({"IMG_SIZE": 192, "MASK_RATIO": 0.6}), "AMP_OPT_LEVEL": "O0"}),
        }
        torch.save(content, path)

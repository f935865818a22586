"""The examples and exit statuses at the end of each command's help; a test parses every example."""

from __future__ import annotations

__all__ = ["EXAMPLES", "OVERVIEW_EPILOG", "STATUSES", "write_epilog"]

EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "ehm train --config elpv/pretrain --out runs/mine",
        "ehm train --config elpv/pretrain data.source=/data/photos optim.epochs=20 --out runs/mine",
        "ehm train --resume --out runs/mine",
    ),
    "finetune": (
        "ehm finetune --config elpv/finetune model.init=runs/mine data.source=/data/labelled --out runs/classifier",
        "ehm finetune --task segmentation model.init=runs/mine data.source=/data/masks --out runs/segmenter",
    ),
    "probe": (
        "ehm probe --config elpv/probe model.init=runs/mine --out runs/probe",
        "ehm probe --only knn,rankme model.init=timm:vit_small_patch16_224 data.source=/data/labelled",
    ),
    "compare": (
        "ehm compare runs/mine scratch timm:vit_small_patch16_224 --source /data/labelled --out runs/compare",
        "ehm compare runs/mine scratch images=1600 repeats=1",
        "ehm compare --train studies/elpv --out runs/study",
    ),
    "evaluate": (
        "ehm evaluate runs/classifier data.source=/data/others --out runs/evaluated",
        "ehm evaluate timm:vit_small_patch16_224 --task retrieval data.source=/data/products",
    ),
    "export": (
        "ehm export runs/classifier --out bundle",
        "ehm export runs/classifier --head multi --int8 --out bundle",
        "ehm export runs/mine --head features --target ascend --out bundle",
    ),
    "predict": (
        "ehm predict bundle photo.png more-photos/ --top 3",
        "ehm predict bundle more-photos/ --json --out predictions",
        "ehm predict /data/photos --bundle bundle --out predictions",
    ),
    "launch": (
        "ehm launch --kind slurm --nodes 2 --per-node 8 --device npu --"
        " train --config pretrain/vit_base_evolved --out /shared/runs/vit_base",
        "ehm launch --kind kubeflow --image registry/ehm:npu --volume runs:/runs --device npu --"
        " train --config pretrain/vit_base_evolved --out /runs/vit_base",
    ),
    "bench": (
        "ehm bench export bundle",
        "ehm bench export bundle --batch 1 16 --device cpu --json",
    ),
    "serve": (
        "ehm serve bundle",
        "ehm serve cells=bundle --host 0.0.0.0 --port 8080 --max-batch 16",
        "ehm serve --config server.yaml",
    ),
    "inspect": (
        "ehm inspect hierarchy photo.png --checkpoint runs/mine",
        "ehm inspect masks photo.png --checkpoint runs/mine --progress 0 0.5 1",
        "ehm inspect distance /data/photos --checkpoint runs/mine runs/other",
    ),
    "report": ("ehm report runs/mine",),
    "data": (
        "ehm data stats /data/photos",
        "ehm data stats /data/scans data.channels=7 data.depth=16 --out runs/data",
    ),
    "tokenizer": ("ehm tokenizer train --config elpv/tokenizer --out runs/tokenizer",),
    "language": ("ehm language train --out runs/language",),
    "configs": (
        "ehm configs",
        "ehm configs elpv/pretrain",
        "ehm configs --keys train.optim",
    ),
    "doctor": (
        "ehm doctor",
        "ehm doctor --device npu --json",
        "ehm doctor --operators mae",
    ),
    "verify": ("ehm verify --device npu --quick",),
    "completion": ("ehm completion bash > ~/.local/share/bash-completion/completions/ehm",),
    "man": ("ehm man ~/.local/share/man",),
}
"""Command lines that a user may want to copy, by command."""

STATUSES = {
    "predict": {1: "an error, or an image that could not be read"},
    "doctor": {1: "no device can train, or an operator falls back to the CPU"},
    "verify": {1: "an error, or a check that failed"},
}
"""Meanings of exit statuses that differ from those of other commands, by command."""

_COMMON_STATUSES = {
    0: "success",
    1: "an error",
    2: "a wrong argument or configuration",
    130: "interrupted",
    141: "the reader of the output has gone away",
}

OVERVIEW_EPILOG = """\
first steps:
  ehm doctor
  ehm train --config elpv/pretrain --out runs/mine
  ehm inspect masks photo.png --checkpoint runs/mine
"""


def write_epilog(command: str) -> str:
    """Return the end of a command's help: its examples and exit statuses."""
    lines = ["examples:"]
    lines += [f"  {example}" for example in EXAMPLES[command]]
    lines += ["", "exit status:"]
    statuses = {**_COMMON_STATUSES, **STATUSES.get(command, {})}
    lines += [f"  {number:<4} {meaning}" for number, meaning in statuses.items()]
    return "\n".join(lines)

"""The cost of a pretraining step and of its masks: random beside evolved, ehm beside other programs.

    python benchmarks/pretrain_step.py [--models vit_small vit_base] [--dtypes bfloat16 float32] [--batch-size 16]
        [--rounds 3] [--steps 4] [--device cpu|cuda|npu] [--threads N] [--clock wall|cpu] [--rows ...] [--quick]
        [--profile ROW]

A round starts a process for each row, one after the other: two steps that do not count, then --steps that do. Columns
are milliseconds: the median of a round's steps, and of these the median; "of random" and "of plain" compare with the
rows of that name in the same round: median (lowest - highest). All rows see the same images of 224 x 224, mask 147 of
196 patches, have the same decoder (512 wide, 8 blocks), the same threads and, by autocast, the same precision.
--clock cpu with --threads 1 counts processor time, for a machine on which other jobs run. --profile ROW prints the
operators of that row's step instead.

"data" is upload and normalisation; "similarity" the forward pass through the first six blocks; "hierarchy" is balancing
and trees, and "tree" the trees alone, in % of the step; "memory" is the peak of the process (of the device's allocator,
on an accelerator) over its steps. "evolved" balances similarities (the default), "evolved, raw" does not, as in the
paper; "evolved, 4 views" masks each of a quarter of the images four times after one forward pass (mask.views);
"evolved, 3 blocks" takes similarities of half as many blocks (mask.blocks), not balanced; "compiled" is run.compile,
whose first step takes a minute. "plain" is the step of the published MAE code: patches embedded by a convolution,
attention by matrix products and softmax, all patches predicted, AdamW parameter by parameter. Other programs take part
if they are installed (pip install transformers lightly), as their examples train.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ehm.backends.torch.engine import devices
from ehm.config import TrainConfig
from ehm.config.encoders import VIT_PRESETS

PROGRESS = 0.5
"""Half way through training, trees are cut in the middle."""
COLUMNS = ("data", "similarity", "hierarchy", "mask", "forward/backward", "optimiser", "total")
EVOLVED = {
    "random": {},
    "evolved": {"balance": "sinkhorn"},
    "evolved, raw": {"balance": "none"},
    "evolved, 4 views": {"balance": "sinkhorn", "views": 4},
    "evolved, 3 blocks": {"balance": "none", "blocks": 3},
    "random, compiled": {},
}
PEERS = {"plain": None, "transformers": "transformers", "lightly": "lightly"}
Step = Callable[[], float]


class Clock:
    """Seconds by name of the work that has ended; work inside of a measured part counts there only."""

    def __init__(self, device: torch.device, cpu: bool) -> None:
        self.seconds = dict.fromkeys((*COLUMNS, "tree"), 0.0)
        self._device = device
        self._inner = [0.0]  # seconds of measured parts within each part that is open
        self._read = time.process_time if cpu else time.perf_counter

    def read_seconds(self) -> float:
        """Return the seconds once the device has done everything that it was asked for."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize()
        return self._read()

    @contextmanager
    def measure_part(self, name: str) -> Any:
        """Count the work inside the block as ``name``."""
        start = self.read_seconds()
        self._inner.append(0.0)
        yield
        passed = self.read_seconds() - start
        self.seconds[name] += passed - self._inner.pop()
        self._inner[-1] += passed

    def measure_calls(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``function`` so that its calls count as ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.measure_part(name):
                return function(*args, **kwargs)

        return run


def make_ehm_step(row: str, model: str, dtype: str, images: NDArray[np.uint8], clock: Clock, device: str) -> Step:
    """Make a function that takes a step of ehm, as the training loop does."""
    from ehm import backends
    from ehm.masking import hierarchy_masker, make_masker

    config = TrainConfig.model_validate(
        {
            "encoder": model,
            "masking": "random" if row.startswith("random") else "evolved",
            "mask": EVOLVED[row],
            "optim": {"batch_size": len(images), "dtype": dtype},
            "run": {"compile": row.endswith("compiled")},
        }
    )
    backend = backends.get(device)
    learner: Any = backend.create_learner(config)
    build = backend.describe_device().hierarchy
    mask = clock.measure_calls("mask", make_masker(config.masking, config.masks, config.units, build))
    images = images[: len(images) // config.mask.views]

    learner._pixels.normalise = clock.measure_calls("data", learner._pixels.normalise)
    learner.model.embed = clock.measure_calls("forward/backward", learner.model.embed)  # once for both
    hierarchy_masker.balance = clock.measure_calls("hierarchy", hierarchy_masker.balance)
    build_tree = clock.measure_calls("tree", hierarchy_masker.build_hierarchy)
    hierarchy_masker.build_hierarchy = clock.measure_calls("hierarchy", build_tree)
    optimizer = learner._training.optimizer
    optimizer.step = clock.measure_calls("optimiser", optimizer.step)

    def step() -> float:
        batch = learner.prepare_batch(images)
        batch.compute_similarity = clock.measure_calls("similarity", batch.compute_similarity)
        # on the device: hierarchies and masks too
        batch.compute_evolved_masks = clock.measure_calls("similarity", batch.compute_evolved_masks)
        masks, _ = mask(batch, PROGRESS, (0,))
        with clock.measure_part("forward/backward"):
            return learner.train_step(batch, masks, 1e-4, 0.05)["loss"]

    return step


def make_peer_step(row: str, model: str, dtype: str, images: NDArray[np.uint8], clock: Clock, device: str) -> Step:
    """Make a function that takes a step of another implementation, under the same autocast."""
    from ehm.backends.torch.engine.tensors import Pixels

    torch_device = devices.choose_device(device)
    data = TrainConfig(encoder=model).data
    compute_loss, optimizer = BUILDERS[row](model, torch_device)
    pixels = Pixels(torch_device, data.mean, data.std)
    precision = devices.choose_dtype(dtype, torch_device)

    def step() -> float:
        with clock.measure_part("data"):
            batch = pixels(images)
        with clock.measure_part("forward/backward"):
            optimizer.zero_grad()
            with devices.autocast_to(torch_device, precision):
                value = compute_loss(batch)
            value.backward()
        with clock.measure_part("optimiser"):
            optimizer.step()
        return value.detach()

    return step


def build_plain(name: str, device: torch.device) -> tuple[Callable[..., Any], torch.optim.Optimizer]:
    """Build MAE as its paper describes it (He et al., 2022), every operator by itself."""
    from timm.models.vision_transformer import Block

    from ehm.backends.torch.models.patches import patchify
    from ehm.backends.torch.objectives.mae import MaskedAutoencoder

    model = MaskedAutoencoder(TrainConfig(encoder=name).spec).to(device).train()
    blocks = [*model.blocks, *model.decoder_blocks]
    for block in blocks:
        block.__class__ = Block  # timm's own instead of ours
        block.attn.fused_attn = False

    def gather_tokens(tokens: Any, indices: Any) -> Any:
        return torch.gather(tokens, 1, indices.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))

    def compute_loss(images: Any) -> Any:
        tokens = model.patch_embed(images) + model.pos_embed[:, 1:]
        batch, patches, _ = tokens.shape
        visible = patches // 4
        order = torch.rand(batch, patches, device=device).argsort(dim=1)
        restore = order.argsort(dim=1)
        tokens = model.prepend_prefix(gather_tokens(tokens, order[:, :visible]))
        for block in model.blocks:
            tokens = block(tokens)
        tokens = model.decoder_embed(model.norm(tokens))
        fill = model.mask_token.repeat(batch, patches - visible, 1)
        complete = gather_tokens(torch.cat([tokens[:, 1:], fill], dim=1), restore)
        tokens = torch.cat([tokens[:, :1], complete], dim=1) + model.decoder_pos_embed
        for block in model.decoder_blocks:
            tokens = block(tokens)
        predicted = model.decoder_pred(model.decoder_norm(tokens))[:, 1:]
        target = patchify(images, 16)
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        masked = torch.ones(batch, patches, device=device)
        masked[:, :visible] = 0
        masked = masked.gather(1, restore)
        return (((predicted - target) ** 2).mean(dim=-1) * masked).sum() / masked.sum()

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return compute_loss, torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, foreach=False, fused=False)


def build_transformers(name: str, device: torch.device) -> tuple[Callable[..., Any], torch.optim.Optimizer]:
    """Build Hugging Face's ViTMAE with its trainer's optimiser, fused AdamW."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = VIT_PRESETS[name]
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=size["width"],
            num_hidden_layers=size["depth"],
            num_attention_heads=size["heads"],
            intermediate_size=4 * size["width"],
            norm_pix_loss=True,
        )
    )
    model = model.to(device).train()
    return lambda images: model(images).loss, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def build_lightly(name: str, device: torch.device) -> tuple[Callable[..., Any], torch.optim.Optimizer]:
    """Build lightly's MAE on a timm ViT, with torch's default AdamW, as in its example."""
    import warnings

    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    warnings.simplefilter("ignore")
    size = VIT_PRESETS[name]
    vit = VisionTransformer(embed_dim=size["width"], depth=size["depth"], num_heads=size["heads"], num_classes=0)
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches, patch_size=16, embed_dim=size["width"], decoder_embed_dim=512
    )
    model = torch.nn.ModuleList([encoder, decoder]).to(device).train()

    def compute_loss(images: Any) -> Any:
        batch = len(images)
        tokens = encoder.sequence_length
        keep, hide = utils.random_token_mask(size=(batch, tokens), mask_ratio=0.75, device=device)
        encoded = decoder.embed(encoder.encode(images=images, idx_keep=keep))
        filled = utils.repeat_token(decoder.mask_token, (batch, tokens))
        filled = utils.set_at_index(filled, keep, encoded.type_as(filled))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(filled), hide))
        target = utils.get_at_index(utils.patchify(images, 16), hide - 1)
        return torch.nn.functional.mse_loss(predicted, target)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return compute_loss, torch.optim.AdamW(trained, lr=1e-4)


BUILDERS = {"plain": build_plain, "transformers": build_transformers, "lightly": build_lightly}


def make_step(row: str, model: str, dtype: str, images: NDArray[np.uint8], clock: Clock, device: str) -> Step:
    """Make a function that takes a step of the row and returns its loss."""
    make = make_ehm_step if row in EVOLVED else make_peer_step
    return make(row, model, dtype, images, clock, device)


def run_row(row: str, model: str, dtype: str, batch_size: int, device: str, cpu: bool, steps: int) -> None:
    """Run in the process of a row: two steps that do not count, then ``steps`` that do, a line of JSON for each."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 224, 224, 3), np.uint8)
    torch_device = devices.choose_device(device)
    clock = Clock(torch_device, cpu)
    take_step = make_step(row, model, dtype, images, clock, device)
    for number in range(-2, steps):
        clock.seconds = dict.fromkeys(clock.seconds, 0.0)
        start = clock.read_seconds()
        take_step()
        seconds = {**clock.seconds, "total": clock.read_seconds() - start}
        seconds["hierarchy"] += seconds["tree"]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if torch_device.type != "cpu":
            memory = devices.get_device_module(torch_device).max_memory_allocated() / 2**20
        if number >= 0:
            print(json.dumps({**seconds, "memory": memory}))


def _trace_npu(take_step: Step) -> None:
    """Write a trace of two steps, which torch's own profiler cannot see on an NPU."""
    import torch_npu

    folder = Path("npu_profile")
    with torch_npu.profiler.profile(
        activities=[torch_npu.profiler.ProfilerActivity.CPU, torch_npu.profiler.ProfilerActivity.NPU],
        on_trace_ready=torch_npu.profiler.tensorboard_trace_handler(str(folder)),
    ):
        for _ in range(2):
            float(take_step())
    print(f"trace of two steps in {folder}: kernel_details.csv has a line for each kernel")


def print_profile(row: str, model: str, dtype: str, batch_size: int, device: str) -> None:
    """Print the time of a step, operator by operator."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 224, 224, 3), np.uint8)
    take_step = make_step(row, model, dtype, images, Clock(devices.choose_device(device), False), device)
    for _ in range(2):
        float(take_step())
    if device.partition(":")[0] == "npu":
        _trace_npu(take_step)
        return
    with torch.profiler.profile() as profiler:
        for _ in range(2):
            float(take_step())
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(
        f"\n{row}, {model}, {dtype}, {batch_size} masked images a step\n\n| operator | ms a step | share, % | calls |"
    )
    print("|---|---|---|---|")
    for event in events[:16]:
        milliseconds = event.self_cpu_time_total / 2000
        print(f"| {event.key} | {milliseconds:.0f} | {milliseconds / total * 2e5:.1f} | {event.count // 2} |")


def measure_row(row: str, model: str, dtype: str, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Measure the steps of one row, in a process of its own."""
    command = [sys.executable, __file__, "--row", row, "--models", model, "--dtypes", dtype]
    for name in ("batch_size", "device", "clock", "steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def print_table(model: str, dtype: str, rows: list[str], arguments: argparse.Namespace) -> None:
    """Measure the rows in turn, and print them."""
    measured: dict[str, list[list[dict[str, float]]]] = {row: [] for row in rows}
    for number in range(arguments.rounds):
        for row in rows:
            measured[row].append(measure_row(row, model, dtype, arguments))
            seconds = np.median([step["total"] for step in measured[row][-1]])
            print(f"{model}, {dtype}, round {number}: {row} {seconds:.2f} s", file=sys.stderr)
    times = {row: take_medians(turns) for row, turns in measured.items()}
    print(f"\n{model}, {dtype}, {arguments.batch_size} masked images a step\n")
    print(f"| row | {' | '.join(COLUMNS)} | tree, % | of random | of plain | memory, MiB |")
    print("|---|" + "---|" * (len(COLUMNS) + 4))
    for row in rows:
        cells = [f"{1000 * np.median(times[row][name]):.1f}" for name in COLUMNS]
        cells.append(f"{100 * np.median(times[row]['tree'] / times[row]['total']):.2f}")
        for other in ("random", "plain"):
            ratio = times[row]["total"] / times[other]["total"]
            cells.append(f"{np.median(ratio):.2f} ({ratio.min():.2f} - {ratio.max():.2f})")
        cells.append(f"{np.median(times[row]['memory']):.0f}")
        print(f"| {row} | {' | '.join(cells)} |", flush=True)


def take_medians(turns: list[list[dict[str, float]]]) -> dict[str, NDArray[np.float64]]:
    """Return the median of each round's steps, (rounds,) for each column."""
    medians = {}
    for name in turns[0][0]:
        medians[name] = np.array([np.median([step[name] for step in turn]) for turn in turns])
    return medians


def describe_machine(device: str) -> str:
    """Describe the machine in one line."""
    torch_device = devices.choose_device(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="ascii") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    amx = ", AMX" if devices._has_cpu_flag("amx_bf16") else ""
    accelerator = ""
    if torch_device.type != "cpu":
        accelerator = f"{devices.describe_device(torch_device).description}; "
    load = os.getloadavg()[0]
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.1f} before the start"
    return f"{accelerator}{name}{amx}, {cores}; torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small", "vit_base"], choices=VIT_PRESETS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=16, help="masked images a step (16), a multiple of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps that count, of each row in each round (4)")
    parser.add_argument(
        "--profile", choices=[*EVOLVED, *PEERS], metavar="ROW", help="print the operators of this row's step"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu counts processor time, with --threads 1"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=[*EVOLVED, *PEERS],
        help="only these rows, random and plain (default: all but compiled)",
    )
    parser.add_argument("--quick", action="store_true", help="one round of vit_small with 8 images")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the rows' processes
        torch.set_num_threads(arguments.threads)
    if arguments.row:
        model = arguments.models[0]
        dtype = arguments.dtypes[0]
        cpu = arguments.clock == "cpu"
        run_row(arguments.row, model, dtype, arguments.batch_size, arguments.device, cpu, arguments.steps)
        return
    if arguments.profile:
        model = arguments.models[-1]
        dtype = arguments.dtypes[0]
        print(describe_machine(arguments.device))
        print_profile(arguments.profile, model, dtype, arguments.batch_size, arguments.device)
        return
    if arguments.quick:
        arguments.models = ["vit_small"]
        arguments.batch_size = 8
        arguments.rounds = 1
    rows = [row for row in (*EVOLVED, *PEERS) if row in EVOLVED or PEERS[row] is None or find_spec(PEERS[row])]
    wanted = arguments.rows or [row for row in rows if not row.endswith("compiled")]
    rows = [row for row in rows if row in (*wanted, "random", "plain")]
    print(describe_machine(arguments.device))
    for model in arguments.models:
        for dtype in arguments.dtypes:
            print_table(model, dtype, rows, arguments)


if __name__ == "__main__":
    main()

"""The MindSpore backend beside the torch backend, on this machine's CPU, in float32.

    python benchmarks/two_frameworks.py curves    # trains three runs under runs/mindspore, resumable, about ten minutes
    python benchmarks/two_frameworks.py steps     # seconds of a step, alternately in both: five minutes
    python benchmarks/two_frameworks.py steps 3   # with three rounds instead of fifteen

``steps`` takes the models of ``STEPS``. It counts the seconds that pass, and those of the processors, which other
programs on the machine lengthen less.

``curves`` trains elpv/pretrain and compares torch, MindSpore from the same weights (those of torch's checkpoint after
one step), and MindSpore from weights of its own. All see the same images, crops and order, and the same masks as long
as similarities agree. It prints a table by epoch and draws docs/images/mindspore.svg. MindSpore runs in the environment
of `make test`.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/mindspore"
PICTURE = ROOT / "docs/images/mindspore.svg"
PYTHONS = {
    "cpu": sys.executable,
    "mindspore:cpu": os.environ.get("EHM_MINDSPORE_PYTHON", str(ROOT / ".venv-mindspore/bin/python")),
}
CURVES = {
    "torch": "#1f77b4",
    "MindSpore, the same weights": "#d62728",
    "MindSpore, weights of its own": "#2ca02c",
}
ROUNDS = 15
WARM_UP = 5
"""Steps that are not counted: MindSpore compiles, and tunes its kernels in the first three."""
STEPS = {
    "elpv/pretrain": ("elpv/pretrain", []),
    "MAE, ViT-S/16 at 224, 8 images": (None, ["encoder=vit_small", "optim.batch_size=8"]),
}
"""Configurations of steps, each a file or None, and settings."""


def train_run(device, out, steps="null"):
    settings = ["optim.dtype=float32", "run.keep=1", f"run.max_steps={steps}"]
    arguments = ["--config", "elpv/pretrain", "--device", device, "--out", str(out), "--resume"]
    overrides = [f"--set={setting}" for setting in settings]
    subprocess.run([PYTHONS[device], "-m", "ehm.cli", "train", *arguments, *overrides], check=True)


def compare_curves():
    names = list(CURVES)
    folders = {name: RUNS / str(number) for number, name in enumerate(names)}
    train_run("cpu", folders[names[0]], 1)
    if not folders[names[1]].exists():
        shutil.copytree(folders[names[0]], folders[names[1]])
    train_run("cpu", folders[names[0]])
    for name in names[1:]:
        train_run("mindspore:cpu", folders[name])
    print_report(folders)


def print_report(folders):
    losses = {}
    epochs = {}
    for name, folder in folders.items():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[name] = {line["step"]: line["loss"] for line in lines}
        epochs[name] = [line for line in lines if line["epoch"] == int(line["epoch"])]
    print("| epoch |" + "".join(f" {name} |" for name in losses))
    print("|---|" + "---|" * len(losses))
    for rows in zip(*epochs.values(), strict=True):
        print(f"| {rows[0]['epoch']:.0f} |" + "".join(f" {row['loss']:.4f} |" for row in rows))
    first, second = (losses[name] for name in list(losses)[:2])
    shared = sorted(first.keys() & second.keys())
    apart = [(step, abs(second[step] / first[step] - 1)) for step in shared]
    print(f"\nFrom the same weights, the losses of steps {shared[0]} to {shared[-1]} differ by a relative")
    print(
        ", ".join(f"{max(gap for step, gap in apart if step <= last):.1e} up to step {last}" for last in (82, 328, 656))
    )
    draw_curves(losses)


def draw_curves(losses):
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    last = max(max(curve) for curve in losses.values())
    for row, (name, curve) in enumerate(losses.items()):
        epochs = [8 * step / last for step in sorted(curve)]
        values = [curve[step] for step in sorted(curve)]
        # The second curve hides the first one as long as they agree, so it is dashed.
        axes.plot(epochs, values, color=CURVES[name], linestyle="--" if row == 1 else "-", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_ylim(0.45, 1.3)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ehm"}):  # text as text, and fixed identifiers
        figure.savefig(PICTURE, metadata={"Date": None})  # without the date, the same curves give the same file
    print(f"Picture: {PICTURE}")


def compare_steps(rounds=ROUNDS):
    print("| | torch, ms | MindSpore, ms | ratio (quartiles) | ratio of processor time |")
    print("|---|---|---|---|---|")
    for name in STEPS:
        times = time_steps(name, int(rounds))
        for part in ("masks", "step"):
            ours = [row[part] for row in times["cpu"]]
            theirs = [row[part] for row in times["mindspore:cpu"]]
            low, middle, high = divide_into_quartiles(ours, theirs, "seconds")
            processor = divide_into_quartiles(ours, theirs, "processor_seconds")[1]
            medians = [f"{statistics.median(row['seconds'] for row in rows) * 1e3:.0f}" for rows in (ours, theirs)]
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {name}: {part} | {medians[0]} | {medians[1]} | {ratio} | {processor:.2f} |", flush=True)


def divide_into_quartiles(ours, theirs, key):
    """Quartiles of MindSpore's time by torch's, round by round."""
    return statistics.quantiles([b[key] / a[key] for a, b in zip(ours, theirs, strict=True)], n=4)


def time_steps(name, rounds):
    """Time each framework in a process of its own, which takes a step when it is told to."""
    processes = {
        device: subprocess.Popen(
            [python, __file__, "serve", device, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for device, python in PYTHONS.items()
    }
    times = {device: [] for device in processes}
    for round_ in range(WARM_UP + rounds):
        for device, process in processes.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            seconds = json.loads(process.stdout.readline())
            if round_ >= WARM_UP:
                times[device].append(seconds)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return times


def take_steps(device, name):
    """Take a step for each line of standard input, and print the seconds of its parts."""
    import numpy as np

    from ehm import backends
    from ehm.config import TrainConfig, load_config
    from ehm.masking import make_masker

    file, settings = STEPS[name]
    config = load_config(TrainConfig, file, ["optim.dtype=float32", *settings])
    learner = backends.get(device).create_learner(config)
    count = config.optim.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, *config.image_size, 3), dtype=np.uint8)
    masker = make_masker(config.masking, config.masks, config.units)
    for number, _ in enumerate(sys.stdin):
        clocks = [read_clocks()]
        batch = learner.prepare_batch(images)
        mask, _ = masker(batch, 0.3, (number,))
        clocks.append(read_clocks())
        float(learner.train_step(batch, mask, 1e-4, 0.05)["loss"])
        clocks.append(read_clocks())
        parts = {}
        for part, before, after in zip(("masks", "step"), clocks, clocks[1:], strict=False):
            parts[part] = {key: after[key] - before[key] for key in before}
        print(json.dumps(parts), flush=True)


def read_clocks():
    return {"seconds": time.perf_counter(), "processor_seconds": time.process_time()}


if __name__ == "__main__":
    {"curves": compare_curves, "steps": compare_steps, "serve": take_steps}[sys.argv[1]](*sys.argv[2:])

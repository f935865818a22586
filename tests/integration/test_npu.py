"""``--device npu``, through the public command line, on the simulated NPU of ``tests/simulated``.

Losses and weights equal those of ``--device cpu`` within float32's rounding (relative 1e-5, absolute 1e-6), and nothing
arrives at the device that torch-npu has no kernel for. What a simulation cannot show stands in its docstring.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from composited import write_pairs
from PIL import Image
from ports import free_port
from question_files import write_easy_vqa
from scenes import write_scenes
from tiny import RUN, TINY
from vit_forms import write_form

from ehm.backends.torch.diagnosis.operators import judge_calls
from ehm.backends.torch.diagnosis.recording import Call
from ehm.backends.torch.language.stand_in import create_language_model, create_word_tokenizer
from ehm.storage.checkpoint import open_checkpoint

SIMULATED = Path(__file__).parents[1] / "simulated"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

PRETRAIN = {**RUN, **TINY}
ENCODER_KEYS = ("encoder", "patch_size", "model.width", "model.depth", "model.heads")
EVERYTHING = {
    "mask.build": "device",
    "optim.accumulate": 2,
    "optim.clip_grad": 1,
    "optim.ema_decay": 0.9,
    "run.grad_checkpointing": "true",
}
GOING_ON = {
    **{key: value for key, value in PRETRAIN.items() if key not in ENCODER_KEYS},
    "objective": "mae",
    "image_size": 64,
}
FEATURE = {"objective": "feature", "optim.base_lr": 0.02, "optim.ema_decay": "[0.9, 1]"}
LORA = {"lora.rank": 2, "lora.targets": "[attn.qkv, attn.proj, mlp]"}
COMMANDS = """
import json, sys
from ehm.cli import main
for arguments in json.loads(sys.argv[1]):
    status = main(arguments)
    if status:
        sys.exit(f"{arguments}: status {status}")
"""


def command(name, device, out, settings, *more):
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    return [name, "--device", device, "--out", str(out), *overrides, *more]


def start(commands, log=None, before="", launcher=(), **variables):
    """A process that runs ``commands`` one after the other, with the simulation where torch-npu would be."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(SIMULATED),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **variables,
    }
    if log is not None:
        environment["EHM_SIMULATED_NPU_LOG"] = str(log)
    line = [sys.executable, "-c", before + COMMANDS, json.dumps(commands)]
    if launcher:
        (only,) = commands
        line = [sys.executable, *launcher, "-m", "ehm.cli", *only]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return said


def recorded(folder):
    """Rows of everything that arrived at the device, worst first."""
    lines = [line for file in sorted(folder.glob("log.*")) for line in file.read_text().splitlines()]
    assert lines
    rows = map(json.loads, lines)
    return judge_calls({Call(row["operator"], tuple(row["dtypes"]), row["site"]) for row in rows})


def complaints(rows):
    return [f"{row.operator} {row.dtypes} at {row.site}: {row.reason}" for row in rows if row.verdict == "falls back"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty small pictures of two classes: smooth colour gradients."""
    folder, rng = tmp_path_factory.mktemp("images") / "pictures", np.random.default_rng(0)
    for index in range(20):
        corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        path = folder / ("even", "odd")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        corners.resize((40, 36), Image.Resampling.BICUBIC).save(path)
    write_pairs(folder.parent / "pairs", 20)
    write_form("dinov3_gated", folder.parent / "rotary.safetensors")
    write_easy_vqa(folder.parent / "questions")
    cpu = torch.device("cpu")
    tokenizer = create_word_tokenizer(["question: what color is there a red shape in the image? answer:"], cpu)
    create_language_model(tokenizer, 16, 2, 2, cpu).save_pretrained(folder.parent / "language")
    tokenizer.save_pretrained(folder.parent / "language")
    return folder


def commands(device, out, pictures):
    """Every command that trains, in float32."""
    source, masked = {"data.source": pictures}, {"data.source": pictures.parent / "pairs", "data.scale": "[64, 64]"}
    pretrain, task = {**PRETRAIN, **source}, {**RUN, **source, "model.init": out / "evolved"}
    segment = {**task, **masked, **SEGMENT}
    first = {"model.init": out / "evolved", "model.loss": "cosine", **LORA}
    rotary = {"model.init": pictures.parent / "rotary.safetensors"}
    questions = {"data.source": pictures.parent / "questions", "language.source": pictures.parent / "language"}
    hierarchy = ["inspect", "hierarchy", str(pictures / "even"), "--checkpoint", str(rotary["model.init"])]
    return [
        *(command("train", device, out / name, {**pretrain, "masking": name}) for name in MASKINGS),
        command("train", device, out / "everything", {**pretrain, **EVERYTHING}),
        command("train", device, out / "feature", {**pretrain, **FEATURE}),
        command("train", device, out / "adapted", {**pretrain, **FEATURE, "model.teacher": "start", **first}),
        command("train", device, out / "resumed", {**pretrain, "run.max_steps": 4}),
        command("train", device, out / "resumed", {"run.max_steps": 10}, "--resume"),
        command("finetune", device, out / "finetune", task),
        command("finetune", device, out / "segmentation", segment, "--task", "segmentation"),
        command("probe", device, out / "probe", {**task, "neighbours": 3}),
        command(
            "finetune", device, out / "retrieval", {**task, **RETRIEVAL, "benchmark": pictures}, "--task=retrieval"
        ),
        command("finetune", device, out / "answers", {**ANSWERS, **questions}, "--task=vision_language"),
        # rotations of the visible patches alone, in the encoder that the weights bring along
        command("train", device, out / "rotary_pretrain", {**GOING_ON, **source, **rotary}),
        command("finetune", device, out / "rotary", {**task, **rotary}),
        # images of any size, for which angles are computed on the device; large steps would let rounding grow
        command(
            "finetune", device, out / "rotary_maps", {**segment, **rotary, "optim.base_lr": 1e-3}, "--task=segmentation"
        ),
        [*hierarchy, "--device", device, "--out", str(out / "pages")],
        ["export", str(out / "finetune"), "--out", str(out / "bundle")],
    ]


SEGMENT = {
    "crop_size": 64,
    "head.channels": 16,
    "head.auxiliary_channels": 8,
    "inference.stride": "null",
    "optim.steps": 8,
    "optim.warmup_steps": 1,
}
MASKINGS = ["evolved", "random", "grid", "block", "attmask_hint"]
LOWER = {
    "bfloat16": {"optim.dtype": "bfloat16"},
    "float16": {"optim.dtype": "float16"},
    "everything": {**EVERYTHING, "optim.dtype": "bfloat16"},
    "feature": {**FEATURE, "optim.dtype": "bfloat16"},
}
RETRIEVAL = {"dim": 16, "scales": "[0.75, 1]", "data.layout": "folder", "optim.steps": "null"}
ANSWERS = {
    **{"model.encoder": "vit_tiny", "model.width": 24, "model.depth": 1, "model.heads": 2, "model.image_size": 16},
    **{"model.patch_size": 8, "resampler.latents": 2, "resampler.depth": 1, "resampler.heads": 2},
    **{"resampler.head_width": 8, "resampler.mlp_ratio": 2, "language.most": 3, "language.dtype": "float32"},
    **{"optim.batch_size": 3, "optim.accumulate": 3, "optim.steps": 8, "optim.warmup_steps": 0, "optim.base_lr": 0.1},
    **{"optim.dtype": "float32", "data.workers": 0, "run.trackers": "[]", "run.log_every": 1},
    **{"run.grad_checkpointing": "true"},
}
RUNS = [*MASKINGS, "everything", "feature", "adapted", "resumed", "finetune", "segmentation", "probe", "retrieval"]
RUNS += ["answers", "rotary", "rotary_maps", "rotary_pretrain"]


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """Folders of the runs on ``npu`` and on ``cpu``, and of those in lower precision on ``npu``."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("npu", "cpu", "lower")}
    lower = [
        command("train", "npu", folders["lower"] / name, {**PRETRAIN, "data.source": pictures, **settings})
        for name, settings in LOWER.items()
    ]
    processes = [
        start(commands("npu", folders["npu"], pictures), folders["npu"] / "log"),
        start(commands("cpu", folders["cpu"], pictures), folders["cpu"] / "log"),
        start(lower, folders["lower"] / "log"),
    ]
    assert "device npu (Ascend910B (simulated))" in finish(processes[0])
    assert "device cpu" in finish(processes[1])
    finish(processes[2])
    return folders


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_are_those_of_the_cpu(runs, name):
    ours, theirs = losses(runs["npu"] / name), losses(runs["cpu"] / name)
    assert len(ours) >= 8
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    first, second = (open_checkpoint(runs[device] / name).state for device in ("npu", "cpu"))
    for arrays, references in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert arrays.keys() == references.keys()
        for key in references:
            array, reference = without_key_bias(key, arrays[key]), without_key_bias(key, references[key])
            np.testing.assert_allclose(array, reference, err_msg=key, **CLOSE)


def without_key_bias(key, array):
    """The bias of keys changes no attention: its gradient is rounding, of which Adam makes steps of any sign."""
    return np.delete(array, np.arange(len(array) // 3, len(array) * 2 // 3)) if key.endswith("qkv.bias") else array


def test_hierarchies_of_a_rotary_vit_are_those_of_the_cpu(runs):
    pages = [Path(runs[device] / "pages" / "hierarchy.png").read_bytes() for device in ("npu", "cpu")]
    assert pages[0] == pages[1]


def test_masks_differ_so_that_equal_losses_mean_something(runs):
    """But for blocks: none fits into 16 patches, and what is left of them are random masks, from the same stream."""
    others = [name for name in MASKINGS if name != "block"]
    assert len({tuple(losses(runs["npu"] / name)) for name in others}) == len(others)


def test_a_resumed_run_ends_bit_for_bit_like_one_that_never_stopped(runs):
    whole, resumed = (open_checkpoint(runs["npu"] / name).state for name in ("evolved", "resumed"))
    for arrays, references in ((resumed.model, whole.model), (resumed.optimizer, whole.optimizer)):
        for key in references:
            np.testing.assert_array_equal(arrays[key], references[key], err_msg=key)


def test_what_was_fine_tuned_there_is_exported(runs):
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    logits = []
    for device in ("npu", "cpu"):
        session = onnxruntime.InferenceSession(runs[device] / "bundle" / "model.onnx")
        size = session.get_inputs()[0].shape[-1]
        given = np.kron(images, np.ones((1, 1, size // 32, size // 32), np.float32))
        logits.append(session.run(None, {session.get_inputs()[0].name: given})[0])
    assert logits[0].shape == (2, 2)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["npu", "lower"])
def test_every_operator_is_native_or_neutral(runs, device):
    rows = recorded(runs[device])
    assert not complaints(rows), "\n".join(complaints(rows))
    ran = {row.operator for row in rows}
    assert {"scaled_dot_product_attention", "native_layer_norm", "embedding_dense_backward", "gelu.out"} <= ran
    assert len(ran) > 60
    # peft imports every device's package that is installed; nothing arrives there
    assert not any(file.read_text() for file in runs["cpu"].glob("log.*"))


def test_the_host_waits_only_where_it_reads(runs):
    """float32: the metrics, what the hierarchy on the device says that it reads every few rounds, and words."""
    waits = {row.site.rpartition(":")[0] for row in recorded(runs["npu"]) if row.verdict == "synchronises"}
    generation = "ehm/backends/torch/language/frozen.py"
    assert waits == {"ehm/training/progress.py", "ehm/backends/torch/engine/hierarchy.py", generation}
    lines = (Path(__file__).parents[2] / "backends/torch/language/frozen.py").read_text().splitlines()
    for row in recorded(runs["npu"]):
        if row.verdict == "synchronises" and row.site.startswith(generation):
            line = lines[int(row.site.rpartition(":")[2]) - 1]
            # for each new word of an answer, and in transformers, which looks whether texts are packed
            assert "generate(" in line or "base_model(" in line or "allclose" in line, line


def test_lower_precision_trains_too(runs):
    for name in LOWER:
        # the others have the loss of the plain run, which masks that are built elsewhere do not change
        reference = losses(runs["npu"] / ("feature" if name == "feature" else "evolved"))
        np.testing.assert_allclose(losses(runs["lower"] / name)[:3], reference[:3], rtol=0.02)
    rows = recorded(runs["lower"])
    assert {"bfloat16", "float16"} <= {dtype for row in rows if row.operator == "mm" for dtype in row.dtypes}
    assert "_fused_adamw_" in {row.operator for row in rows}  # bfloat16
    assert "_amp_foreach_non_finite_check_and_unscale_" in {row.operator for row in rows}


DETECTION = {
    **{"model.encoder": "vit_tiny", "model.width": 48, "model.depth": 4, "model.heads": 3, "model.patch_size": 8},
    **{"model.image_size": 64, "model.init": "scratch", "min_size": 64, "max_size": 96, "width": 32, "proposals": 32},
    **{"anchor_sizes": "[8, 16, 24, 32, 48]", "optim.batch_size": 4, "optim.dtype": "bfloat16", "run.max_steps": 2},
    **{"data.workers": 0, "run.trackers": "[]", "run.log_every": 1, "optim.warmup_steps": 0},
}


def test_three_operators_of_a_detector_fall_back(tmp_path):
    """These are the operators that docs/detection.md names, in lower precision too."""
    for part, images in (("train", 4), ("val", 2)):
        write_scenes(tmp_path / "scenes", images, images, part, 64)
    settings = {**DETECTION, "data.source": tmp_path / "scenes"}
    finish(start([command("finetune", "npu", tmp_path / "run", settings, "--task=detection")], tmp_path / "log"))
    rows = recorded(tmp_path)
    fallen = {row.operator for row in rows if row.verdict == "falls back"}
    assert fallen == {"torchvision::nms", "torchvision::roi_align", "torchvision::_roi_align_backward"}
    assert len({row.operator for row in rows}) > 60
    assert len(losses(tmp_path / "run")) == 2


PLANT = """
import torch
from ehm.backends.torch.objectives.mae import MaskedAutoencoder
forward = MaskedAutoencoder.forward
def planted(self, *args, **kwargs):
    return forward(self, *args, **kwargs) + {}
MaskedAutoencoder.forward = planted
"""
PLACE = "ehm/backends/torch/learners/pretraining.py:"


def test_a_planted_operator_that_falls_back_is_named_with_its_place(pictures, tmp_path):
    settings = {**PRETRAIN, "data.source": pictures, "run.max_steps": 1}
    planted = PLANT.format("torch.nn.functional.huber_loss(self.cls_token, torch.zeros_like(self.cls_token))")
    said = finish(start([command("train", "npu", tmp_path / "run", settings)], tmp_path / "log", planted))
    assert "The operator 'aten::huber_loss' is not currently supported on the NPU backend" in said
    found = complaints(recorded(tmp_path))
    assert any(text.startswith(f"huber_loss ('float32',) at {PLACE}") for text in found)
    assert any(
        text.startswith("huber_loss_backward.out ('float32',) at backward (HuberLossBackward0)") for text in found
    )


def test_a_planted_float64_ends_the_run_and_is_named_with_its_place(pictures, tmp_path):
    settings = {**PRETRAIN, "data.source": pictures, "run.max_steps": 1}
    planted = PLANT.format("self.cls_token.double().sum()")
    process = start([command("train", "npu", tmp_path / "run", settings)], before=planted)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "float64 on the NPU: aten::" in said
    assert f" at {PLACE}" in said


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_over_hccl_are_one_run(runs, pictures, tmp_path, parallel):
    settings = {**PRETRAIN, "data.source": pictures, **EVERYTHING, "run.parallel": parallel}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    run = command("train", "npu", tmp_path / "run", settings)
    said = finish(start([run], tmp_path / "log", launcher=torchrun, EHM_SIMULATED_NPUS="2"))
    assert "2 processes" in said
    assert len(list(tmp_path.glob("log.*"))) == 2
    one = runs["npu"] / "everything"
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5, atol=2e-5)
    alone, together = open_checkpoint(one).model, open_checkpoint(tmp_path / "run").model
    for key in alone:
        np.testing.assert_allclose(together[key], alone[key], rtol=1e-4, atol=1e-4, err_msg=key)
    assert not complaints(recorded(tmp_path)), "\n".join(complaints(recorded(tmp_path)))


def test_a_device_that_is_not_there_is_one_sentence(pictures, tmp_path):
    process = start([command("train", "npu:3", tmp_path / "run", {**PRETRAIN, "data.source": pictures})])
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--device npu:3: there are 1, numbered from 0" in said
    assert "Traceback" not in said

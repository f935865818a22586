"""Several processes, as torchrun starts them: the same run as one process with the same global batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ports import free_port
from question_files import write_easy_vqa
from tiny import TINY

from ehm import backends
from ehm.cli import main
from ehm.config import LanguageTrainingConfig
from ehm.storage.checkpoint import open_checkpoint

SETTINGS = {
    **TINY,
    "optim.batch_size": 6,
    "optim.epochs": 4,
    "optim.warmup_epochs": 1,
    "optim.base_lr": 0.02,
    "optim.ema_decay": 0.9,
    "optim.accumulate": 2,
    "optim.clip_grad": 1,
    "optim.dtype": "float32",
    "data.workers": 0,
    "run.log_every": 1,
    "run.checkpoint_every": 2,
    "run.trackers": "[]",
    "watch.pictures": 2,
}
LABELLED = {
    "encoder": "vit_tiny", "width": 24, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8, "drop_path": 0.0
}  # fmt: skip
FINETUNE = {
    "model.init": "scratch",
    **{f"model.{key}": value for key, value in LABELLED.items()},
    "augment.rand_augment": "null",
    "augment.mixup": 0,
    "augment.cutmix": 0,
    "augment.random_erasing": 0,
    "optim.batch_size": 8,
    "optim.epochs": 2,
    "optim.warmup_epochs": 0,
    "optim.base_lr": 0.02,
    "optim.dtype": "float32",
    "data.workers": 0,
    "run.log_every": 1,
    "run.trackers": "[]",
}


def list_arguments(command, out, settings, *more):
    """The words of ``ehm COMMAND`` with these settings."""
    return [command, "--device", "cpu", "--out", str(out), *(f"--set={k}={v}" for k, v in settings.items()), *more]


def run_alone(command, out, settings):
    """Run ``ehm COMMAND`` in this process."""
    assert main(list_arguments(command, out, settings)) == 0


def run_by_torchrun(arguments):
    """Run ``ehm ARGUMENTS...`` in two processes that torchrun starts."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    line += ["--master_port", str(free_port()), "-m", "ehm.cli", *arguments]
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def curve(out, *names):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in names}


def assert_same_run(one, several, *names, rtol=1e-5, atol=2e-5):
    for name, values in curve(one, *names).items():
        np.testing.assert_allclose(curve(several, name)[name], values, rtol=rtol, err_msg=name)
    alone = open_checkpoint(one)
    shared = open_checkpoint(several)
    assert alone.metadata["step"] == shared.metadata["step"]
    first = alone.state
    second = shared.state
    for ours, theirs in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            used = weighs(name, len(value)) if value.ndim else ...
            np.testing.assert_allclose(theirs[name][used], value[used], rtol=1e-3, atol=atol, err_msg=name)


def weighs(name, length):
    """All of a parameter but the bias of keys: softmax does not see that, so that its gradient is rounding alone."""
    keys = range(length // 3, 2 * length // 3) if "attn.qkv.bias" in name else ()
    return [place for place in range(length) if place not in keys]


@pytest.fixture
def settings(images):
    return {**SETTINGS, "data.source": images}


FIGURES = {"evolved": ("mask_level", "largest_part"), "epm": ("parts", "largest_part"), "attmask_hint": ()}


@pytest.mark.parametrize(
    ("parallel", "masking", "source"),
    [("ddp", "evolved", "online"), ("fsdp", "evolved", "online"), ("ddp", "epm", "online"),
     ("fsdp", "attmask_hint", "ema")],
)  # fmt: skip
def test_two_processes_train_as_one_does(settings, tmp_path, pair, parallel, masking, source):
    settings |= {"masking": masking, "mask.source": source, "watch.every": 0.5}
    run_alone("train", tmp_path / "one", settings)
    said = pair.run(*list_arguments("train", tmp_path / "two", {**settings, "run.parallel": parallel}))
    assert said.count("Checkpoint: ") == 1  # the first process speaks, alone
    assert "2 processes" in said
    watched = ("rankme", "feature_spread", "rankme_ema")
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "grad_norm", "lr", *FIGURES[masking], *watched)


SIMMIM = {
    "vit_tiny": {"patch_size": 8, "model.depth": 2, "model.heads": 2},
    "swin_tiny": {"patch_size": 2, "model.depth": "[2, 1, 1]", "model.heads": "[1, 2, 2]", "model.width": 16},
}


@pytest.mark.parametrize(("encoder", "parallel"), [("vit_tiny", "fsdp"), ("swin_tiny", "fsdp")])
def test_two_processes_train_simmim_as_one_does(settings, tmp_path, pair, encoder, parallel):
    settings |= {**SIMMIM[encoder], "objective": "simmim", "encoder": encoder, "mask.unit": 16, "mask.ratio": 0.5}
    settings |= {"model.drop_path": 0, "optim.epochs": 2, "optim.base_lr": 0.005}
    run_alone("train", tmp_path / "one", settings)
    pair.run(*list_arguments("train", tmp_path / "two", {**settings, "run.parallel": parallel}))
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "grad_norm", "lr", *FIGURES["evolved"])


def test_two_processes_keep_first_blocks_and_learn_updates_as_one_does(settings, tmp_path, pair):
    settings |= {"layer_decay": 0.8, "optim.epochs": 2}
    run_alone("train", tmp_path / "start", settings)
    settings |= {"model.init": tmp_path / "start", "model.freeze": 1}
    settings |= {"lora.rank": 2, "lora.targets": "[attn.qkv, attn.proj, mlp]"}
    run_alone("train", tmp_path / "one", settings)
    said = pair.run(*list_arguments("train", tmp_path / "two", {**settings, "run.parallel": "fsdp"}))
    assert "parameters learn" in said
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "grad_norm", "lr", *FIGURES["evolved"])


@pytest.mark.parametrize(("parallel", "teacher"), [("ddp", "start"), ("fsdp", "ema")])
def test_two_processes_predict_features_as_one_does(settings, tmp_path, pair, parallel, teacher):
    settings |= {"optim.epochs": 2, "optim.base_lr": 0.005, "optim.ema_decay": "[0.9, 1]"}
    if teacher == "start":
        run_alone("train", tmp_path / "first", {**settings, "optim.epochs": 1})
        settings |= {"model.init": tmp_path / "first"}
    settings |= {"objective": "feature", "model.teacher": teacher}
    run_alone("train", tmp_path / "one", settings)
    pair.run(*list_arguments("train", tmp_path / "two", {**settings, "run.parallel": parallel}))
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "grad_norm", "lr", *FIGURES["evolved"])


def test_a_run_goes_on_with_another_number_of_processes(settings, tmp_path, pair):
    whole = tmp_path / "whole"
    moved = tmp_path / "moved"
    settings |= {"masking": "block"}
    run_alone("train", whole, settings)
    run_by_torchrun(list_arguments("train", moved, {**settings, "run.max_steps": 2}))
    alone = {**settings, "run.max_steps": 4, "optim.accumulate": 1}
    assert main(list_arguments("train", moved, alone, "--resume")) == 0
    together = {**settings, "run.max_steps": 99, "run.parallel": "fsdp"}
    pair.run(*list_arguments("train", moved, together, "--resume"))
    assert_same_run(whole, moved, "loss", "grad_norm", "lr")


def test_two_processes_fine_tune_and_measure_as_one_does(stripes, tmp_path, pair):
    # DDP has to do without gradients of the first block
    settings = {**FINETUNE, "data.source": stripes, "model.freeze": 1}
    run_alone("finetune", tmp_path / "one", settings)
    pair.run(*list_arguments("finetune", tmp_path / "two", settings))
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "lr")
    one, two = (json.loads((tmp_path / out / "metrics.json").read_text()) for out in ("one", "two"))
    for key in ("samples", "top1", "confusion", "balanced_accuracy", "part"):
        assert one[key] == two[key]


@pytest.mark.parametrize(("parallel", "longest"), [("ddp", "null"), ("fsdp", 24)])
def test_two_processes_train_and_measure_descriptors_as_one_does(stripes, tmp_path, pair, parallel, longest):
    settings = {name: value for name, value in FINETUNE.items() if not name.startswith("augment.")}
    settings |= {
        "data.source": stripes,
        "data.layout": "folder",
        "benchmark": stripes,
        "dim": 16,
        "longest": longest,
        "optim.steps": "null",
        "run.parallel": parallel,
    }
    assert main(list_arguments("finetune", tmp_path / "one", settings, "--task=retrieval")) == 0
    pair.run(*list_arguments("finetune", tmp_path / "two", settings, "--task=retrieval"))
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "lr")
    one, two = (json.loads((tmp_path / out / "metrics.json").read_text())["protocols"]["all"] for out in ("one", "two"))
    assert one["queries"] == two["queries"] == 48
    assert two["map"] == pytest.approx(one["map"], abs=1e-3)


ANSWERS = {
    **{f"model.{key}": value for key, value in LABELLED.items()},
    **{"model.image_size": 16, "resampler.latents": 2, "resampler.depth": 1, "resampler.heads": 2},
    **{"resampler.head_width": 8, "language.dtype": "float32", "language.most": 3, "data.flip": "false"},
    **{"optim.batch_size": 6, "optim.accumulate": 3, "optim.steps": 4, "optim.warmup_steps": 0, "optim.base_lr": 0.1},
    **{"optim.dtype": "float32", "data.workers": 0, "run.log_every": 1, "run.trackers": "[]"},
}


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_two_processes_weigh_tokens_of_answers_as_one_does(tmp_path, pair, frozen):
    pytest.importorskip("transformers", reason="language models are those of transformers")
    questions = write_easy_vqa(tmp_path / "questions")
    file = questions / "train" / "questions.json"
    # answers of several lengths, so that the processes have unequally many tokens
    file.write_text(file.read_text(encoding="utf-8").replace('"circle"', '"a red or blue circle"'), encoding="utf-8")
    language = tmp_path / "language"
    config = LanguageTrainingConfig(width=8, depth=1, heads=1)
    words = ["question: what color is there a red shape in the image? answer: or blue circle yes no"]
    backends.get("cpu").create_text_learner(config, words).save(language)
    settings = {**ANSWERS, "frozen": frozen, "data.source": questions, "language.source": language}
    # of a frozen encoder two processes keep tokens, and one does not
    settings |= {"data.crop_scale": "[1,1]", "cache_features": "off"}
    assert main(list_arguments("finetune", tmp_path / "one", settings, "--task=vision_language")) == 0
    settings["cache_features"] = "auto"
    pair.run(*list_arguments("finetune", tmp_path / "two", settings, "--task=vision_language"))
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss", "grad_norm", "lr")
    figures = [json.loads((tmp_path / name / "metrics.json").read_text())["accuracy"] for name in ("one", "two")]
    assert figures[0] == figures[1]


def test_a_set_of_one_batch_is_shared_evenly(settings, tmp_path, pair):
    settings |= {"optim.batch_size": 12, "optim.epochs": 2}
    pair.run(*list_arguments("train", tmp_path / "two", settings))
    run_alone("train", tmp_path / "one", settings)
    assert_same_run(tmp_path / "one", tmp_path / "two", "loss")

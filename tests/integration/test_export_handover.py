"""From a checkpoint to what other engines take, by the command line, with a network of our own."""

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from checkpoints import LABELS, classifier
from fake_atc import FAKE_ATC
from made_bundles import model_config
from PIL import Image

from ehm.cli import main
from ehm.config import DataConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(classifier(tmp_path_factory.mktemp("run"), (48, 64)))


@pytest.mark.parametrize("setting", ["preprocessing", "dynamic_size"])
def test_an_export_hands_its_bundle_to_triton_and_kserve(setting, run, tmp_path):
    bundle, models, file = (str(tmp_path / name) for name in ("cells", "models", "service.yaml"))
    command = ["export", run, "--head", "multi", "--set", f"{setting}=true", "--out", bundle]
    assert main([*command, "--triton", models, "--kserve", file]) == 0
    config = model_config(Path(models, "cells/config.pbtxt"))
    session = onnxruntime.InferenceSession(Path(models, "cells/1/model.onnx"), providers=["CPUExecutionProvider"])
    real = {each.name: each.shape[1:] for each in [*session.get_inputs(), *session.get_outputs()]}
    assert {tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]} == {
        name: [-1 if isinstance(size, str) else size for size in shape] for name, shape in real.items()
    }
    warm = config.model_warmup[0].inputs["images"].dims
    assert list(warm) == ([48, 64, 3] if setting == "preprocessing" else [3, 48, 64])
    assert yaml.safe_load(Path(file).read_text(encoding="utf-8"))["metadata"]["name"] == "ehm-cells"


def test_an_export_for_ascend_holds_the_command_and_what_atc_makes(tmp_path, monkeypatch, acl, capsys):
    photographs = tmp_path / "photographs"
    rng = np.random.default_rng(0)
    for label in LABELS:
        (photographs / label).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (50, 70, 3), np.uint8)
            Image.fromarray(pixels).save(photographs / label / f"{number}.png")
    run = str(classifier(tmp_path / "run", (48, 64), data=DataConfig(source=str(photographs)), folds=4))
    (tmp_path / "atc").write_text(FAKE_ATC.format(python=sys.executable))
    (tmp_path / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert main(["export", run, "--target", "ascend", "--out", str(tmp_path / "bundle")]) == 0
    opened = Bundle.open(tmp_path / "bundle")
    assert {"atc.sh", "atc_float32.txt", "choose_precision.py", "model.om", "model.onnx"} <= set(opened.manifest.files)
    assert "--input_shape=images:-1,3,48,64 " in (opened.path / "atc.sh").read_text()
    assert (opened.path / "model.om").read_bytes().endswith(b"\n" + opened.model().read_bytes())
    record = opened.manifest.ascend
    assert (record.soc_version, record.batch_sizes) == ("Ascend910B3", (1, 2, 4, 8, 16, 32))
    # every precision was tried on the photographs that training held out
    assert [trial.precision for trial in record.trials] == ["fp16", "mixed", "origin"]
    assert {(trial.images, trial.agreement, trial.accepted) for trial in record.trials} == {(3, 1, True)}
    assert record.trials[0].source == f"{photographs} (fold 0 of 4)"
    fastest = min(record.trials, key=lambda trial: trial.milliseconds)
    assert record.precision == fastest.precision
    assert f"by default ./model.om in {fastest.precision}." in (opened.path / "atc.sh").read_text()
    assert "| mixed | " in (opened.path / "README.md").read_text()
    assert any(name.endswith("mean") for name in (opened.path / "atc_float32.txt").read_text().splitlines())
    assert (record.parity.chip, record.parity.images) == ("Ascend910B3", 32)
    assert record.parity.cosine == pytest.approx(1, abs=1e-6)
    images = np.random.default_rng(0).standard_normal((3, 3, 48, 64), np.float32)
    found = Predictor(opened, "om").run(images)["logits"]
    np.testing.assert_allclose(found, Predictor(opened).run(images)["logits"], rtol=1e-4, atol=1e-5)
    # a file for another chip cannot be run here, and is no error; the export replaces its own bundle
    soc = ["--set", "ascend.soc_version=Ascend310P3"]
    assert main(["export", run, "--target", "ascend", "--out", str(tmp_path / "bundle"), *soc]) == 0
    assert "it is for Ascend310P3, and this NPU is an Ascend910B3" in " ".join(capsys.readouterr().out.split())
    assert Bundle.open(tmp_path / "bundle").manifest.ascend.parity is None

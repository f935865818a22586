"""From a checkpoint to what other engines take, by the command line, with a network of our own."""

import os
import sys
from pathlib import Path

import onnxruntime
import pytest
import yaml
from checkpoints import classifier
from fake_atc import FAKE_ATC
from made_bundles import model_config

from ehm.cli import main
from ehm.deploy.bundle.bundle import Bundle


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


def test_an_export_for_ascend_holds_the_command_and_what_atc_makes(run, tmp_path, monkeypatch):
    (tmp_path / "atc").write_text(FAKE_ATC.format(python=sys.executable))
    (tmp_path / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert main(["export", run, "--target", "ascend", "--out", str(tmp_path / "bundle")]) == 0
    opened = Bundle.open(tmp_path / "bundle")
    assert {"atc.sh", "model.om", "model.onnx"} <= set(opened.manifest.files)
    assert "--input_shape=images:-1,3,48,64 " in (opened.path / "atc.sh").read_text()
    assert (opened.path / "model.om").read_bytes() == b"om of " + opened.model().read_bytes()
    assert main(["export", run, "--target", "ascend", "--out", str(tmp_path / "bundle")]) == 0  # replaces its own

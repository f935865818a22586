"""The choice among ATC's precisions, with the stand-ins for ATC and pyACL, whose outputs can be distorted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_atc import FAKE_ATC
from made_bundles import PREPROCESSING, make_bundle
from PIL import Image

from ehm.config import AscendConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Ascend
from ehm.deploy.export.engines import precision_search as search
from ehm.deploy.export.engines.ascend import write_scripts
from ehm.deploy.export.engines.samples import make_samples
from ehm.deploy.predict.ascend_device import open_device
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ExportError

ROOT = Path(__file__).parents[3]
MILLISECONDS = {"fp16": 1.0, "mixed": 2.0, "origin": 5.0}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An ``atc`` on the PATH, and a clock on which each precision takes its own time."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "atc").write_text(FAKE_ATC.format(python=sys.executable))
    (folder / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    times = iter(MILLISECONDS.values())
    monkeypatch.setattr(search, "measure_milliseconds", lambda *_: next(times))


@pytest.fixture
def bundle(tmp_path):
    """A bundle of ``--target ascend`` as it leaves a machine without CANN."""
    alike = PREPROCESSING | {"mean": [0.5] * 3, "std": [0.2] * 3}  # so that a grey has three logits that hardly differ
    opened = make_bundle(tmp_path / "bundle", outputs=["logits", "features"], preprocessing=alike)
    write_scripts(opened.path, "model.onnx", opened.manifest.input, AscendConfig(batch_sizes=(1, 4)), ["one"])
    record = Ascend(soc_version="Ascend910B3", batch_sizes=(1, 4))
    return Bundle.seal(opened.path, opened.manifest.model_copy(update={"ascend": record}))


def choose(bundle, **bounds):
    record = bundle.manifest.ascend.model_copy(update=bounds)
    return search.choose_precision(bundle, record, open_device(0), make_samples(bundle))


def read_compilation(bundle):
    return json.loads((bundle.path / "model.om").read_bytes().split(b"\n")[0])


@pytest.mark.parametrize(
    ("distorted", "chosen", "precision", "kept"),
    [
        ([], "fp16", "fp16", []),
        (["fp16"], "mixed", "mixed_float16", ["one"]),
        (["fp16", "mixed_float16"], "origin", "origin", []),
    ],
)
def test_the_fastest_that_is_near_enough_is_taken(distorted, chosen, precision, kept, bundle, acl, tools):
    acl.distort.update(dict.fromkeys(distorted, 0.3))
    record = choose(bundle)
    assert record.precision == chosen
    compiled = read_compilation(bundle)
    assert (compiled["precision"], compiled["float32"], compiled["batch_sizes"]) == (precision, kept, [1, 4])
    assert {trial.precision: trial.milliseconds for trial in record.trials} == MILLISECONDS
    assert [trial.accepted for trial in record.trials] == [number >= len(distorted) for number in range(3)]
    assert all((trial.cosine > 0.999) == trial.accepted for trial in record.trials)
    assert record.parity.cosine > 0.999
    assert sorted(path.name for path in bundle.path.iterdir() if path.is_dir()) == []


def test_where_none_is_near_enough_there_is_no_file(bundle, acl, tools):
    acl.distort.update(dict.fromkeys(["fp16", "mixed_float16", "origin"], float("nan")))
    with pytest.raises(ExportError, match=r"no precision of ATC reaches a cosine of 0\.999 and 99\.0% of the same"):
        choose(bundle)
    assert not (bundle.path / "model.om").exists()


def test_classes_have_to_stay_the_same_too(bundle, acl, tools, tmp_path, capsys):
    """Photographs whose channels hardly differ have another class after the least distortion."""
    (tmp_path / "greys").mkdir()
    for grey in range(5, 25):
        Image.new("RGB", (50, 40), (grey + 1, grey, grey)).save(tmp_path / "greys" / f"{grey}.png")
    acl.distort["fp16"] = 0.02
    acl.distort["mixed_float16"] = 1e-4
    assert search.main(bundle.path, [str(tmp_path / "greys")]) == 0
    report = json.loads((bundle.path / "model.om.json").read_text())
    half, mixed, _ = report["trials"]
    assert half["cosine"] > 0.999
    assert half["agreement"] < 0.99
    assert (half["accepted"], mixed["accepted"], mixed["agreement"], mixed["images"]) == (False, True, 1, 20)
    assert report["precision"] == "mixed"
    assert "mixed in " in capsys.readouterr().out
    Predictor(bundle, "om")  # compared again when it is loaded, as it is not in the manifest


def test_the_script_in_the_bundle_chooses_there(bundle, tools, tmp_path):
    """It runs from anywhere, on a machine with CANN and ehm."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests/simulated")))}
    script = bundle.path / "choose_precision.py"
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "figures in model.om.json" in done.stdout
    assert read_compilation(bundle)["soc"] == "Ascend910B3"


def test_without_atc_the_script_says_so(bundle, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert search.main(bundle.path, []) == 1
    assert "needs a bundle of --target ascend, and atc on the PATH" in " ".join(capsys.readouterr().out.split())

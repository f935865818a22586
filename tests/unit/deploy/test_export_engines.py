"""KServe's InferenceService, and the command that writes it and Triton's models, with a bundle or from one.

The fields that we write are in kserve_schema.py, as KServe's custom resource definition has them.
"""

import json
import re
from pathlib import Path

import pytest
from kserve_schema import read_service
from made_bundles import make_bundle, model_config

from ehm.cli import main
from ehm.config import ExportConfig, TritonConfig
from ehm.deploy.export.engines.convert import write_engines
from ehm.deploy.export.engines.kserve import write_kserve


@pytest.mark.parametrize(("device", "gpu"), [("auto", None), ("cuda", "1"), ("cuda:1", "1")])
def test_an_inference_service_follows_the_published_definition(device, gpu, tmp_path):
    bundle = make_bundle(tmp_path / "Cells_v2.1", precisions=("float32", "int8"))
    config = TritonConfig(storage_uri="pvc://models/cells", threads=2, instances=3)
    write_kserve(bundle, tmp_path / "new/service.yaml", config, device)
    text = (tmp_path / "new/service.yaml").read_text(encoding="utf-8")
    found = read_service(text)
    assert found["metadata"]["name"] == "ehm-cells-v2-1"
    assert "Cells_v2.1, Cells_v2.1_int8" in text.splitlines()[0]
    model = found["spec"]["predictor"]["model"]
    # what KServe's config/runtimes/kserve-tritonserver.yaml supports
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "onnx", "version": "1"}, "v2")
    assert (model["runtime"], model["storageUri"]) == ("kserve-tritonserver", "pvc://models/cells")
    assert model["resources"]["limits"]["cpu"] == "6"
    assert model["resources"]["limits"].get("nvidia.com/gpu") == gpu
    assert "&" not in text  # no YAML aliases, which kubectl expands and people do not
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["service.yaml"]


def test_a_service_has_a_valid_name_whatever_the_models(tmp_path):
    for name in ("2024", "-a-", "_", "X" * 80, "a..b"):
        write_kserve(make_bundle(tmp_path / "bundle"), tmp_path / "service.yaml", TritonConfig(name=name))
        read_service((tmp_path / "service.yaml").read_text(encoding="utf-8"))


def test_the_guide_has_every_setting_and_a_service_that_follows_the_definition():
    guide = (Path(__file__).parents[3] / "docs/serving_scale.md").read_text(encoding="utf-8")
    (container,) = read_service(re.search(r"```yaml\n(.*?)```", guide, re.S)[1])["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"  # the one that KServe looks for STORAGE_URI in
    rows = dict(re.findall(r"^\| `triton\.(\w+)` \| ([^|]*)\|", guide, re.M))
    said = {"preferred_batch_size": "[]"}
    assert {name: value.strip() for name, value in rows.items()} == {
        name: said.get(name, str(value)) for name, value in TritonConfig()
    }


@pytest.mark.parametrize(("with_kserve", "gpu"), [(False, 1), (True, 0)])
def test_a_pod_has_one_gpu_whichever_it_is_on_this_machine(tmp_path, with_kserve, gpu):
    """Kubernetes gives a container that asks for one GPU a machine with GPU 0 alone."""
    bundle = make_bundle(tmp_path / "bundle")
    file = tmp_path / "service.yaml" if with_kserve else None
    write_engines(bundle, triton=tmp_path / "models", kserve=file, config=ExportConfig(), device="cuda:1")
    (group,) = model_config(tmp_path / "models/bundle/config.pbtxt").instance_group
    assert (group.Kind.Name(group.kind), list(group.gpus)) == ("KIND_GPU", [gpu])


@pytest.mark.parametrize(("device", "said"), [("cuda", False), ("cuda:1", True)])
def test_a_service_without_its_models_is_told_which_gpu_they_are_for(tmp_path, capsys, device, said):
    file = tmp_path / "service.yaml"
    write_engines(make_bundle(tmp_path / "bundle"), triton=None, kserve=file, config=ExportConfig(), device=device)
    printed = " ".join(capsys.readouterr().out.split())
    assert (f"a model repository for it is written by --device cuda, not {device}" in printed) == said


def test_a_bundle_that_is_there_is_converted_and_stays_as_it_is(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "bundle")
    before = {path: path.stat().st_mtime_ns for path in bundle.path.iterdir()}
    models, file = str(tmp_path / "models"), str(tmp_path / "service.yaml")
    command = ["export", str(bundle.path), "--triton", models, "--kserve", file]
    assert main([*command, "--set", "triton.max_batch_size=4", "--set", "triton.storage_uri=gs://mine/models"]) == 0
    assert model_config(Path(models, "bundle/config.pbtxt")).max_batch_size == 4
    assert read_service(Path(file).read_text())["spec"]["predictor"]["model"]["storageUri"] == "gs://mine/models"
    assert {path: path.stat().st_mtime_ns for path in bundle.path.iterdir()} == before
    assert f"--model-repository={models}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "is a bundle already; --triton DIR or --kserve FILE says"),
        (["--triton", "models", "--out", "other"], "already, and final; for --out export run again with that"),
        (["--triton", "models", "--set", "opset=18"], "already, and final; for --set opset export run again"),
        (["--int8", "--head", "multi", "--kserve", "file"], "for --head, --int8 export run again with that"),
        (["--float16"], "for --float16 export run again"),
        (["--target", "ascend"], "for --target export run again"),
        (["--triton", "bundle/models"], "--triton bundle/models: neither the repository nor the bundle"),
        (["--triton", "bundle"], "--triton bundle: neither the repository nor the bundle"),
        (["--triton", "."], "--triton .: neither the repository nor the bundle"),
        (["--kserve", "bundle/service.yaml"], "--kserve bundle/service.yaml: lies in a bundle"),
        (["--kserve", "."], "--kserve .: is a folder"),
        (["--triton", "models", "--set", "triton.preferred_batch_size=[64]"], "goes beyond max_batch_size 32"),
        (["--kserve", "file", "--set", "triton.storage_uri=models"], "triton.storage_uri"),
        (["--triton", "models", "--set", "triton.name=a/b"], "triton.name"),
    ],
)
def test_what_would_change_nothing_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    make_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "bundle", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("holds", ["checkpoints/step-1/state.json", "state.json", "manifest.json"])
def test_a_run_or_another_bundle_gets_no_models(holds, tmp_path, capsys):
    bundle, other = make_bundle(tmp_path / "bundle"), tmp_path / "other"
    (other / holds).parent.mkdir(parents=True)
    (other / holds).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(bundle.path), "--triton", str(other), "--kserve", str(tmp_path / "file")]) == 2
    assert "is a bundle or a run; give a folder of its own" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_bundle_is_not_written_where_its_engines_cannot_be(tmp_path, capsys):
    command = ["export", "nothing", "--out", str(tmp_path / "bundle")]
    for arguments, status, said in (
        (["--triton", str(tmp_path / "bundle/models")], 2, "may lie in the other"),
        (["--triton", str(tmp_path / "models"), "--device", "npu"], 2, "--device npu: Triton runs on"),
        (["--kserve", str(tmp_path)], 2, "is a folder; give a file"),
        (["--triton", str(tmp_path / "models")], 1, "nothing"),  # only the checkpoint is missing now
    ):
        assert main([*command, *arguments]) == status
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_placeholder_in_a_service_is_said(tmp_path, capsys):
    command = ["export", str(make_bundle(tmp_path / "bundle").path), "--kserve", str(tmp_path / "file")]
    assert main(command) == 0
    assert "s3://BUCKET/FOLDER, is a placeholder: --set triton.storage_uri=URI gives" in capsys.readouterr().out
    assert main([*command, "--set", "triton.storage_uri=gs://mine/models"]) == 0
    assert "is a placeholder" not in capsys.readouterr().out


def test_an_altered_bundle_is_not_handed_over(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"]
    bundle.model().write_bytes(b"other")
    assert main(["export", str(bundle.path), "--triton", str(tmp_path / "models")]) == 1
    assert "does not match the SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()

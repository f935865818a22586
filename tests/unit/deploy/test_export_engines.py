"""Triton's and KServe's files against the schemas that those projects publish, and against the ONNX files themselves.

``tritonclient`` ships the ModelConfig message that Triton parses config.pbtxt with. Of KServe's InferenceService, the
fields that we write are below, as its custom resource definition has them.
"""

import itertools
import json
import re
from pathlib import Path

import jsonschema_rs
import numpy as np
import onnxruntime
import pytest
import yaml
from made_bundles import IMAGES, PIXELS, make_bundle, model_config

from ehm.cli import main
from ehm.config import ExportConfig, TritonConfig
from ehm.deploy.export.engines.convert import write_engines
from ehm.deploy.export.engines.kserve import write_kserve
from ehm.deploy.export.engines.triton import write_triton
from ehm.errors import ConfigError, ExportError, WriteError


def fits(array, dims):
    """Return whether an array with its batch first has Triton's dimensions."""
    return array.ndim == len(dims) + 1 and all(
        want in (-1, size) for size, want in zip(array.shape[1:], dims, strict=True)
    )


@pytest.mark.parametrize(
    ("images", "outputs", "precisions"),
    [
        (IMAGES, ("logits",), ("float32",)),
        (IMAGES, ("features",), ("float32", "float16")),
        (PIXELS, ("logits", "features", "patches"), ("float32", "int8")),
    ],
)
def test_a_model_repository_is_what_triton_parses_and_its_networks_run_as_it_says(
    images, outputs, precisions, tmp_path
):
    bundle = make_bundle(tmp_path / "cells.v2", images, outputs, precisions)
    repository = tmp_path / "models"
    folders = write_triton(bundle, repository)
    names = ["cells.v2" if precision == "float32" else f"cells.v2_{precision}" for precision in precisions]
    assert folders == [repository / name for name in names]
    assert sorted(path.name for path in repository.iterdir()) == sorted(names)
    for folder, precision in zip(folders, precisions, strict=True):
        config = model_config(folder / "config.pbtxt")
        assert (config.name, config.backend, config.platform) == (folder.name, "onnxruntime", "onnxruntime_onnx")
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["1"]
        file = folder / "1" / config.default_model_filename
        assert file.read_bytes() == bundle.model(precision).read_bytes()
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [tensor.name for tensor in config.input] == [tensor.name for tensor in session.get_inputs()]
        assert [tensor.name for tensor in config.output] == [tensor.name for tensor in session.get_outputs()]
        message = type(config.input[0])
        types = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}
        for tensor, real in zip(
            itertools.chain(config.input, config.output),
            itertools.chain(session.get_inputs(), session.get_outputs()),
            strict=True,
        ):
            assert (
                message.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
                == types[real.type]
            )
            assert list(tensor.dims) == [-1 if isinstance(size, str) else size for size in real.shape[1:]]
        # Triton warms up with what it will be asked for: every sample is a batch that the network takes
        assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]
        for sample in config.model_warmup:
            ((name, value),) = sample.inputs.items()
            assert (value.zero_data, value.data_type) == (True, config.input[0].data_type)
            kind = np.uint8 if images["dtype"] == "uint8" else np.float32
            zeros = np.zeros((sample.batch_size, *value.dims), kind)
            assert fits(zeros, config.input[0].dims)
            found = session.run(None, {name: zeros})
            assert all(fits(array, tensor.dims) for array, tensor in zip(found, config.output, strict=True))
        labelled = [tensor.name for tensor in config.output if tensor.label_filename]
        assert labelled == [name for name in outputs if name == "logits"]
        if labelled:
            lines = (folder / config.output[0].label_filename).read_text(encoding="utf-8").split("\n")
            assert lines == ["red", 'a "quoted" class', "Käfer", ""]


def test_settings_are_what_triton_gets(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    config = TritonConfig(
        name="other",
        max_batch_size=16,
        preferred_batch_size=(4, 16),
        max_queue_delay=700,
        max_queue_size=9,
        instances=3,
        threads=2,
    )
    (folder,) = write_triton(bundle, tmp_path / "models", config, "cuda:1")
    found = model_config(folder / "config.pbtxt")
    assert (found.name, found.max_batch_size) == ("other", 16)
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 16]
    assert found.dynamic_batching.max_queue_delay_microseconds == 700
    assert found.dynamic_batching.default_queue_policy.max_queue_size == 9
    (group,) = found.instance_group
    assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (3, "KIND_GPU", [1])
    assert found.parameters["intra_op_thread_count"].string_value == "2"


@pytest.mark.parametrize(("device", "kind"), [("auto", "KIND_AUTO"), ("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_a_device_is_a_kind_of_instance(device, kind, tmp_path):
    (folder,) = write_triton(make_bundle(tmp_path / "bundle"), tmp_path / "models", device=device)
    (group,) = model_config(folder / "config.pbtxt").instance_group
    assert (group.Kind.Name(group.kind), list(group.gpus)) == (kind, [])


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


@pytest.mark.parametrize("device", ["npu", "cpu:1", "cuda:x"])
def test_a_device_that_triton_lacks_is_refused(device, tmp_path):
    with pytest.raises(ConfigError, match=f"--device {device}: Triton runs on"):
        write_triton(make_bundle(tmp_path / "bundle"), tmp_path / "models", device=device)
    assert not (tmp_path / "models").exists()


def test_a_later_export_replaces_its_models_and_touches_no_other(tmp_path):
    repository = tmp_path / "models"
    both = make_bundle(tmp_path / "bundle", precisions=("float32", "int8"))
    write_triton(both, repository)
    (repository / "bundle/1/model.onnx").write_bytes(b"old")
    (repository / "another").mkdir()
    one = make_bundle(tmp_path / "bundle")
    write_triton(one, repository)
    assert sorted(path.name for path in repository.iterdir()) == ["another", "bundle"]  # no network of another export
    assert (repository / "bundle/1/model.onnx").read_bytes() == one.model().read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


@pytest.mark.parametrize("foreign", ["bundle/2/model.onnx", "bundle/1/model.plan", "bundle_int8/1/model.onnx"])
def test_models_of_others_are_refused(foreign, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    repository = tmp_path / "models"
    if "/2/" in foreign:  # a version that somebody added to ours
        write_triton(bundle, repository)
    file = repository / foreign
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"theirs")
    before = sorted(repository.rglob("*"))
    with pytest.raises(ExportError, match=f"{re.escape(str(repository / Path(foreign).parts[0]))}: exists, and not as"):
        write_triton(bundle, repository)
    assert sorted(repository.rglob("*")) == before
    assert file.read_bytes() == b"theirs"


def test_a_failed_copy_leaves_what_was_there(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle")
    repository = tmp_path / "models"
    write_triton(bundle, repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}

    def full(*_):
        assert [path.name for path in repository.iterdir()] == ["bundle"]  # Triton may be watching
        raise OSError("no space left")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(WriteError, match="no space"):
        write_triton(bundle, repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


@pytest.mark.parametrize("place", range(4))
def test_a_failed_move_brings_every_model_back(tmp_path, monkeypatch, place):
    precisions = ("float32", "int8")
    repository = tmp_path / "models"
    write_triton(make_bundle(tmp_path / "bundle", precisions=precisions), repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    newer = make_bundle(tmp_path / "bundle", outputs=("features",), precisions=precisions)
    rename, moves = Path.rename, []

    def failing(old, new):
        moves.append(new)
        if len(moves) == place + 1:
            raise OSError("not now")
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(WriteError, match="not now"):
        write_triton(newer, repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


def test_a_folder_whose_name_is_no_models_asks_for_one(tmp_path):
    bundle = make_bundle(tmp_path / "my bundle")
    with pytest.raises(ConfigError, match=r"my bundle: the name of the folder .* --set triton\.name=NAME"):
        write_triton(bundle, tmp_path / "models")
    assert write_triton(bundle, tmp_path / "models", TritonConfig(name="mine"))[0].name == "mine"


TEXT = {"type": "string"}
AMOUNTS = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, TEXT],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|"
        r"(\.[0-9]+))))?$",
    },
}
RESOURCES = {"requests": AMOUNTS, "limits": AMOUNTS}
PROBE = {"httpGet": {"path": TEXT, "port": {"anyOf": [{"type": "integer"}, TEXT]}}}
ENVIRONMENT = {"type": "array", "items": ({"name": TEXT, "value": TEXT}, ["name"])}
MODEL = {
    "modelFormat": ({"name": TEXT, "version": TEXT}, ["name"]),
    "protocolVersion": TEXT,
    "runtime": TEXT,
    "storageUri": TEXT,
    "resources": RESOURCES,
    "readinessProbe": PROBE,
}
CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "args": {"type": "array", "items": TEXT},
    "env": ENVIRONMENT,
    "resources": RESOURCES,
    "readinessProbe": PROBE,
    "ports": {"type": "array", "items": ({"containerPort": {"type": "integer"}, "protocol": TEXT}, ["containerPort"])},
}
SERVICE = {
    "apiVersion": {"const": "serving.kserve.io/v1beta1"},
    "kind": {"const": "InferenceService"},
    "metadata": {"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 53}},
    "spec": (
        {
            "predictor": {
                "minReplicas": {"type": "integer"},
                "model": MODEL,
                "containers": {"type": "array", "items": (CONTAINER, ["name"])},
            }
        },
        ["predictor"],
    ),
}
"""Fields, or (fields, required ones), of serving.kserve.io/v1beta1 InferenceService: KServe at aaac4e294
(after v0.20.0), config/crd/full/serving.kserve.io_inferenceservices.yaml, Apache-2.0, which leaves ``metadata`` to
Kubernetes; the pattern of names is that of pkg/apis/serving/v1beta1/inference_service_validation.go."""


def schema(fields):
    """JSON Schema of the fields above. The definition prunes fields that it does not know; here they are errors."""
    if isinstance(fields, tuple):
        return {**schema(fields[0]), "required": fields[1]}
    if fields.get("type") == "array":
        return {**fields, "items": schema(fields["items"])}
    if "anyOf" in fields or "const" in fields or isinstance(fields.get("type"), str):
        return fields
    properties = {name: schema(value) for name, value in fields.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def service(text):
    """An InferenceService that was validated."""
    found = yaml.safe_load(text)
    jsonschema_rs.validate(schema(SERVICE), found)
    return found


@pytest.mark.parametrize(("device", "gpu"), [("auto", None), ("cuda", "1"), ("cuda:1", "1")])
def test_an_inference_service_follows_the_published_definition(device, gpu, tmp_path):
    bundle = make_bundle(tmp_path / "Cells_v2.1", precisions=("float32", "int8"))
    config = TritonConfig(storage_uri="pvc://models/cells", threads=2, instances=3)
    write_kserve(bundle, tmp_path / "new/service.yaml", config, device)
    text = (tmp_path / "new/service.yaml").read_text(encoding="utf-8")
    found = service(text)
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
        service((tmp_path / "service.yaml").read_text(encoding="utf-8"))


def test_the_guide_has_every_setting_and_a_service_that_follows_the_definition():
    guide = (Path(__file__).parents[3] / "docs/serving_scale.md").read_text(encoding="utf-8")
    (container,) = service(re.search(r"```yaml\n(.*?)```", guide, re.S)[1])["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"  # the one that KServe looks for STORAGE_URI in
    rows = dict(re.findall(r"^\| `triton\.(\w+)` \| ([^|]*)\|", guide, re.M))
    said = {"preferred_batch_size": "[]"}
    assert {name: value.strip() for name, value in rows.items()} == {
        name: said.get(name, str(value)) for name, value in TritonConfig()
    }


def test_a_bundle_that_is_there_is_converted_and_stays_as_it_is(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "bundle")
    before = {path: path.stat().st_mtime_ns for path in bundle.path.iterdir()}
    models, file = str(tmp_path / "models"), str(tmp_path / "service.yaml")
    command = ["export", str(bundle.path), "--triton", models, "--kserve", file]
    assert main([*command, "--set", "triton.max_batch_size=4", "--set", "triton.storage_uri=gs://mine/models"]) == 0
    assert model_config(Path(models, "bundle/config.pbtxt")).max_batch_size == 4
    assert service(Path(file).read_text())["spec"]["predictor"]["model"]["storageUri"] == "gs://mine/models"
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


@pytest.mark.parametrize("first", [("cells_int8", ("float32",)), ("cells", ("float32", "int8"))])
def test_another_bundle_named_like_a_variant_is_not_replaced(tmp_path, first):
    """The int8 network of cells, and the float32 one of cells_int8, would be the same model to Triton."""
    name, precisions = first
    other = {"cells": "cells_int8", "cells_int8": "cells"}[name]
    repository = tmp_path / "models"
    write_triton(make_bundle(tmp_path / name, precisions=precisions), repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match=r"cells_int8: exists, and not as ehm export wrote it"):
        write_triton(make_bundle(tmp_path / other), repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before

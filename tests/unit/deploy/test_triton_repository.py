"""Triton's model repository against the message that Triton parses config.pbtxt with, and against the ONNX files.

``tritonclient`` ships that message, ModelConfig.
"""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from made_bundles import IMAGES, PIXELS, make_bundle, model_config

from ehm.config import TritonConfig
from ehm.deploy.export.engines.triton import write_triton
from ehm.errors import ConfigError, ExportError, WriteError


def has_dimensions(array, dims):
    """Return whether an array with its batch first has Triton's dimensions."""
    return array.ndim == len(dims) + 1 and all(
        want in (-1, size) for size, want in zip(array.shape[1:], dims, strict=True)
    )


def read_files(folder):
    """Return the contents of all files below a folder by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
        types = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}
        tensors = [*config.input, *config.output]
        for tensor, real in zip(tensors, [*session.get_inputs(), *session.get_outputs()], strict=True):
            data_types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
            assert data_types[tensor.data_type].name == types[real.type]
            assert list(tensor.dims) == [-1 if isinstance(size, str) else size for size in real.shape[1:]]
        # Triton warms up with what it will be asked for: every sample is a batch that the network takes
        assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]
        for sample in config.model_warmup:
            ((name, value),) = sample.inputs.items()
            assert (value.zero_data, value.data_type) == (True, config.input[0].data_type)
            kind = np.uint8 if images["dtype"] == "uint8" else np.float32
            zeros = np.zeros((sample.batch_size, *value.dims), kind)
            assert has_dimensions(zeros, config.input[0].dims)
            found = session.run(None, {name: zeros})
            assert all(has_dimensions(array, tensor.dims) for array, tensor in zip(found, config.output, strict=True))
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


@pytest.mark.parametrize("first", [("cells_int8", ("float32",)), ("cells", ("float32", "int8"))])
def test_another_bundle_named_like_a_variant_is_not_replaced(tmp_path, first):
    """The int8 network of cells, and the float32 one of cells_int8, would be the same model to Triton."""
    name, precisions = first
    other = {"cells": "cells_int8", "cells_int8": "cells"}[name]
    repository = tmp_path / "models"
    write_triton(make_bundle(tmp_path / name, precisions=precisions), repository)
    before = read_files(repository)
    with pytest.raises(ExportError, match=r"cells_int8: exists, and not as ehm export wrote it"):
        write_triton(make_bundle(tmp_path / other), repository)
    assert read_files(repository) == before


def test_a_failed_copy_leaves_what_was_there(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle")
    repository = tmp_path / "models"
    write_triton(bundle, repository)
    before = read_files(repository)

    def copy_to_full_disk(*_):
        assert [path.name for path in repository.iterdir()] == ["bundle"]  # Triton may be watching
        raise OSError("no space left")

    monkeypatch.setattr("shutil.copyfile", copy_to_full_disk)
    with pytest.raises(WriteError, match="no space"):
        write_triton(bundle, repository)
    assert read_files(repository) == before
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


@pytest.mark.parametrize("failing_move", range(4))
def test_a_failed_move_brings_every_model_back(tmp_path, monkeypatch, failing_move):
    precisions = ("float32", "int8")
    repository = tmp_path / "models"
    write_triton(make_bundle(tmp_path / "bundle", precisions=precisions), repository)
    before = read_files(repository)
    newer = make_bundle(tmp_path / "bundle", outputs=("features",), precisions=precisions)
    rename = Path.rename
    moves = []

    def rename_or_fail(old, new):
        moves.append(new)
        if len(moves) == failing_move + 1:
            raise OSError("not now")
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", rename_or_fail)
    with pytest.raises(WriteError, match="not now"):
        write_triton(newer, repository)
    assert read_files(repository) == before
    assert {path.name for path in tmp_path.iterdir()} == {"models", "bundle"}


def test_a_folder_whose_name_is_no_models_asks_for_one(tmp_path):
    bundle = make_bundle(tmp_path / "my bundle")
    with pytest.raises(ConfigError, match=r"my bundle: the name of the folder .* --set triton\.name=NAME"):
        write_triton(bundle, tmp_path / "models")
    assert write_triton(bundle, tmp_path / "models", TritonConfig(name="mine"))[0].name == "mine"

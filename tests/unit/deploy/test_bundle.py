"""Bundles on disk: a hand-made one whose files, card and manifest are altered on purpose, and its version."""

import hashlib
import json
import os

import numpy as np
import onnx
import pytest
from made_bundles import IMAGES, make_bundle, make_manifest, write_network
from onnx import numpy_helper
from PIL import Image

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Parity
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ExportError


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", outputs=["features"]).path


def rewrite_manifest(bundle, **changes):
    """Change values of a manifest; ``outputs__0__name`` is the key ``name`` of its first output."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = manifest
        for parent in parents:
            section = section[int(parent) if parent.isdecimal() else parent]
        section[last] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_what_was_sealed_opens(bundle):
    opened = Bundle.open(bundle)
    assert opened.model() == bundle / "model.onnx"
    assert set(opened.manifest.files) == {"model.onnx"}
    assert opened.manifest.files["model.onnx"].bytes == opened.model().stat().st_size
    assert {path.name for path in bundle.iterdir()} == {"model.onnx", "manifest.json"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("position", [0, 40, -1])
def test_one_altered_byte_is_found(bundle, position):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[position] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx: does not match the SHA-256"):
        predict(bundle, [])


def test_a_missing_file_is_named(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"model\.onnx: missing; the bundle is incomplete"):
        Bundle.open(bundle)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here that is there and cannot be read")
def test_a_file_that_cannot_be_read_is_named(bundle):
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("/proc/self/mem")
    with pytest.raises(ExportError, match=r"model\.onnx: cannot be read: Input/output error"):
        Bundle.open(bundle)


def make_bundle_with_weights(place, file, value=1.0):
    """Make a bundle whose network keeps an array that is filled with ``value`` in a file of its own."""
    weights = np.full(99, value, np.float32)
    with stage_bundle(place) as folder:
        path = folder / "model.onnx"
        write_network(path, IMAGES, ["features"])
        model = onnx.load(path)
        model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
        onnx.save_model(model, path, save_as_external_data=True, location=file, size_threshold=weights.nbytes)
        Bundle.seal(folder, make_manifest(outputs=["features"]))
    return Bundle.open(place)


@pytest.mark.parametrize("name", ["model.onnx.data", "w", "weights" * 30])
def test_weights_beside_the_network_must_be_among_the_files(name, tmp_path):
    opened = make_bundle_with_weights(tmp_path / "bundle", name)
    assert set(opened.manifest.files) == {"model.onnx", name}
    (opened.path / "notes.data").touch()  # which no network reads
    Bundle.open(opened.path)
    rewrite_manifest(opened.path, files={"model.onnx": opened.manifest.files["model.onnx"].model_dump()})
    with pytest.raises(ExportError, match=f"model.onnx reads '{name}', which is not among its files"):
        Bundle.open(opened.path)


def test_the_version_covers_weights_beside_the_network(tmp_path):
    """Above 2 GB the graph is the same file whatever the weights are."""
    one = make_bundle_with_weights(tmp_path / "one", "w", value=1)
    same = make_bundle_with_weights(tmp_path / "same", "w", value=1)
    other = make_bundle_with_weights(tmp_path / "other", "w", value=2)
    graphs = {opened.manifest.files["model.onnx"].sha256 for opened in (one, same, other)}
    assert len(graphs) == 1
    assert one.version() == same.version() != other.version()
    assert len(one.version()) == 12


def test_the_version_of_a_network_in_one_file_is_the_beginning_of_its_hash(bundle):
    opened = Bundle.open(bundle)
    assert opened.version() == hashlib.sha256(opened.model().read_bytes()).hexdigest()[:12]


@pytest.mark.parametrize("change", ["edited", "missing"])
def test_a_card_is_hashed_and_may_be_edited_or_left_out(change, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", outputs=["features"], card="# Model\n").path
    assert "README.md" in Bundle.open(bundle).manifest.files
    if change == "edited":
        (bundle / "README.md").write_text("# My model\n", encoding="utf-8")
    else:
        (bundle / "README.md").unlink()
    Image.new("RGB", (90, 70), "red").save(tmp_path / "a.png")
    assert len(predict(bundle, tmp_path / "a.png")) == 1


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match=r"not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{", "\xff"])
def test_a_damaged_manifest_is_one_sentence(bundle, text):
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ExportError, match="not a bundle's manifest"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "bundle format 3; this version of ehm reads 2"),
        ({"format": 1}, r"models\.float32"),  # without what that format had
        ({"preprocessing__interpolation": "nearest"}, r"preprocessing\.interpolation"),
        ({"preprocessing__mean": [0.5]}, r"preprocessing: mean has 1 values for 3 channels"),
        ({"task": "classification"}, "a classification without the output logits"),
        ({"outputs__0__name": "logits", "task": "classification"}, "0 labels for an output of 3"),
        ({"models": {}}, "models has no float32"),
        ({"outputs": []}, "outputs is empty"),
        ({"models__float32__file": "other.onnx"}, "'other.onnx' is not among its files"),
        ({"files": {"../model.onnx": {"bytes": 1, "sha256": ""}}}, "may not lie outside the bundle"),
    ],
)
def test_a_wrong_manifest_is_named(bundle, changes, message):
    rewrite_manifest(bundle, **changes)
    with pytest.raises(ExportError, match=message):
        Bundle.open(bundle)


def test_keys_of_later_versions_are_ignored(bundle):
    rewrite_manifest(bundle, novelty=1, models__float32__novelty={"a": 1})
    assert Bundle.open(bundle).manifest.task == "features"


def test_a_resize_that_this_version_does_not_know_is_refused(bundle):
    rewrite_manifest(bundle, preprocessing__resize="tile")
    with pytest.raises(ExportError, match=r"preprocessing\.resize: Input should be 'cover', 'squash' or 'fit'"):
        Predictor(bundle)


def test_the_manifest_is_strict_json(tmp_path):
    parity = Parity(reference="", runtime="", tolerance=1, max_abs=float("nan"), cosine=1, cases=())
    with pytest.raises(ValueError, match="JSON"):
        Bundle.seal(tmp_path, make_manifest().model_copy(update={"parity": parity}))

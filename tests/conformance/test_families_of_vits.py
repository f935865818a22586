"""ViTs of published families in MindSpore beside torch: the same features, attention and bundles from the same files.

That torch's are those of timm's own networks shows tests/unit/backends/test_form_features.py.
"""

import json

import elsewhere
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="files of published forms are written with timm's networks")

from vit_forms import FORMS, write_form  # noqa: E402

from ehm import backends  # noqa: E402
from ehm.config import ModelSource  # noqa: E402
from ehm.deploy.bundle.bundle import Bundle  # noqa: E402
from ehm.deploy.export import export  # noqa: E402

POOLS = dict.fromkeys(FORMS, "avg") | {"siglip": "map", "dinov3": "token"}
ENCODE = """
import json, sys
import numpy as np
from ehm import backends
from ehm.config import ModelSource

folder, pools = sys.argv[1], json.loads(sys.argv[2])
backend = backends.get("mindspore:cpu")
for form, pool in pools.items():
    encoder = backend.create_encoder(ModelSource(init=f"{folder}/{form}.safetensors"), pool=pool)
    images = np.random.default_rng(0).integers(0, 256, (2, *encoder.image_size, 3), dtype=np.uint8)
    found = {"features": encoder.compute_features(images)}
    for block, attention in enumerate(encoder.iterate_attention(images)):
        found[f"attention {block}"] = attention
    np.savez(f"{folder}/{form}.npz", **found)
"""
EXPORT = """
import sys
from ehm.deploy.export import export

for form in sys.argv[2:]:
    export(f"{sys.argv[1]}/{form}.safetensors", head="multi", out=f"{sys.argv[1]}/{form}-there")
"""


@elsewhere.needs_mindspore
@pytest.mark.full_for("mindspore")
@pytest.mark.parametrize("first", [0, 5], ids=["mindspore-0", "mindspore-5"])
def test_features_and_attention_of_five_families_are_torchs_mindspore(first, tmp_path):
    pools = dict(list(POOLS.items())[first : first + 5])
    for form in pools:
        write_form(form, tmp_path / f"{form}.safetensors")
    done = elsewhere.run("-c", ENCODE, tmp_path, json.dumps(pools))
    assert done.returncode == 0, done.stderr
    for form, pool in pools.items():
        encoder = backends.get("cpu").create_encoder(ModelSource(init=f"{tmp_path}/{form}.safetensors"), pool=pool)
        images = np.random.default_rng(0).integers(0, 256, (2, *encoder.image_size, 3), dtype=np.uint8)
        found = np.load(tmp_path / f"{form}.npz")
        expected = encoder.compute_features(images)
        np.testing.assert_allclose(found["features"], expected, atol=2e-5 * np.abs(expected).max(), err_msg=form)
        for block, attention in enumerate(encoder.iterate_attention(images)):
            np.testing.assert_allclose(found[f"attention {block}"], attention, atol=2e-5, err_msg=f"{form} {block}")


@elsewhere.needs_mindspore
@pytest.mark.full_for("mindspore")
@pytest.mark.parametrize("first", [0, 5], ids=["mindspore-0", "mindspore-5"])
def test_both_frameworks_export_the_same_files_of_five_families_mindspore(first, tmp_path):
    forms = list(FORMS)[first : first + 5]
    for form in forms:
        write_form(form, tmp_path / f"{form}.safetensors")
    done = elsewhere.run("-c", EXPORT, tmp_path, *forms)
    assert done.returncode == 0, done.stderr
    for form in forms:
        there = Bundle.open(tmp_path / f"{form}-there")
        here = Bundle.open(export(tmp_path / f"{form}.safetensors", head="multi", out=tmp_path / f"{form}-here"))
        assert there.model().read_bytes() == here.model().read_bytes()
        assert there.manifest.parity.reference.startswith("mindspore ")
        assert there.manifest.parity.max_relative < 2e-5

"""Writing a bundle in place of another: a failed export changes nothing, and what is no bundle is never overwritten."""

import pytest
from made_bundles import make_bundle

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.staging import stage_bundle
from ehm.errors import ExportError


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", outputs=["features"]).path


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail():
        with stage_bundle(tmp_path / "out") as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_earlier_bundle(bundle):
    def fail():
        with stage_bundle(bundle):
            raise ExportError("parity")

    with pytest.raises(ExportError, match="parity"):
        fail()
    assert Bundle.open(bundle).manifest.task == "features"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_earlier_bundle_is_replaced_and_leftovers_of_a_killed_export_go(bundle):
    (bundle.parent / ".bundle-partial").mkdir()
    (bundle.parent / ".bundle-partial" / "model.onnx").write_bytes(b"half")
    with stage_bundle(bundle) as folder:
        (folder / "new").touch()
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_a_killed_export_had_set_aside_comes_back(bundle):
    """Killed between its two renames; the next export fails."""
    bundle.rename(bundle.parent / ".bundle-replaced")
    with pytest.raises(ExportError, match="parity"), stage_bundle(bundle):
        raise ExportError("parity")
    assert Bundle.open(bundle).manifest.task == "features"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "folder", "bundle with a note", "link"])
def test_what_is_not_a_bundle_is_never_overwritten(tmp_path, bundle, kind):
    out = tmp_path / "mine"
    if kind == "file":
        out.touch()
    elif kind == "link":
        out.symlink_to(bundle)
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.txt").touch()
    else:
        out = bundle
        (out / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match="choose another --out"), stage_bundle(out):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_an_edited_card_is_not_overwritten_and_a_card_as_it_was_is(tmp_path):
    for _ in range(2):
        make_bundle(tmp_path / "bundle", card="# Model\n")
    (tmp_path / "bundle/README.md").write_text("# My model\n", encoding="utf-8")
    with pytest.raises(ExportError, match=r"its README\.md was edited, and would be lost; choose another --out"):
        make_bundle(tmp_path / "bundle", card="# Model\n")
    assert (tmp_path / "bundle/README.md").read_text(encoding="utf-8") == "# My model\n"

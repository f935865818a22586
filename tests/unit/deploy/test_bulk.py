"""Bulk prediction in one process: what stands in the Parquet files, and what is done again and what is not."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from made_bundles import make_bundle
from PIL import Image
from pyarrow import parquet

import ehm
from ehm.cli import main
from ehm.errors import ConfigError

CLASSES = ("cracked", "sound")


@pytest.fixture
def photographs(tmp_path):
    """Two classes of five photographs, one of which is broken."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(5):
            colour = rng.integers(0, 256, 3, np.uint8)
            pixels = np.broadcast_to(colour, (60, 80, 3))
            Image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{number}.png")
    broken = tmp_path / "photographs" / "sound" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return tmp_path / "photographs"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", outputs=("logits", "features")).path


def read(folder):
    """Return the rows of all parts in their order."""
    return parquet.read_table(folder).to_pylist()


def test_rows_are_the_predictions_of_the_files_with_the_labels_of_the_source(photographs, bundle, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["predict", str(photographs), "--bundle", str(bundle), "--out", str(out), "--part-size", "4", "--top", "2"]
    assert main(line) == 1  # one photograph is broken
    said = capsys.readouterr().out
    assert "3 parts of 4 images, 0 of them done" in said
    assert "images a second" in said
    assert "1 of 10 could not be read" in said
    assert [path.name for path in sorted(out.glob("*.parquet"))] == [f"part-00000{n}.parquet" for n in range(3)]
    rows = read(out)
    alone = ehm.predict(bundle, photographs, top=2, device="cpu")
    assert [row["path"] for row in rows] == [prediction.image for prediction in alone]
    assert [row["label"] for row in rows] == ["cracked"] * 5 + ["sound"] * 5
    for row, prediction in zip(rows, alone, strict=True):
        if prediction.error is not None:
            assert row["error"] == prediction.error
            assert row["classes"] is row["features"] is None
            continue
        assert row["error"] is None
        assert row["classes"] == [name for name, _ in prediction.classes]
        np.testing.assert_allclose(row["scores"], [score for _, score in prediction.classes], rtol=1e-6)
        np.testing.assert_array_equal(np.float32(row["features"]), prediction.features)


def test_names_that_are_no_utf8_are_written_as_escapes(photographs, bundle, tmp_path):
    for name, target in ((b"caf\xe9.png", "cracked/0.png"), (b"broken \xe9.png", "sound/1.png")):
        (tmp_path / os.fsdecode(name)).symlink_to(photographs / target)
    odd = tmp_path / "odd"
    odd.mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(odd / path.name)
    ehm.predict_source(odd, bundle=bundle, out=tmp_path / "out", device="cpu")
    rows = read(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"{odd}/broken \\xe9.png", f"{odd}/caf\\xe9.png"]
    assert [row["error"] is None for row in rows] == [False, True]


def test_what_is_there_is_not_done_again(photographs, bundle, tmp_path, capsys):
    arguments = {"bundle": bundle, "out": tmp_path / "out", "part_size": 3, "device": "cpu"}
    first = ehm.predict_source(photographs, **arguments)
    assert (first.images, first.new_images, first.unreadable) == (10, 10, 1)
    whole = read(tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in parts}
    parts[1].unlink()
    (tmp_path / "out" / ".ab12-part-000002.parquet").write_bytes(b"of a worker that was killed")
    second = ehm.predict_source(photographs, **arguments)
    assert (second.images, second.new_images, second.unreadable) == (10, 3, 1)
    assert "3 of them done" in capsys.readouterr().out
    assert [path for path in parts if path.stat().st_mtime_ns == before[path]] == [parts[0], *parts[2:]]
    assert read(tmp_path / "out") == whole
    assert not list((tmp_path / "out").glob(".*"))
    assert ehm.predict_source(photographs, **arguments).images_per_second == 0


def test_shards_are_read_as_folders_are(photographs, bundle, tmp_path):
    with tarfile.open(tmp_path / "photographs-000000.tar", "w") as archive:
        for label, name in enumerate(CLASSES):
            for file in sorted((photographs / name).iterdir()):
                archive.add(file, f"{name}-{file.name}")
                text = str(label).encode()
                member = tarfile.TarInfo(f"{name}-{file.stem}.cls")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    for source, out in ((photographs, "a"), (tmp_path / "photographs-000000.tar", "b")):
        ehm.predict_source(source, bundle=bundle, out=tmp_path / out, device="cpu")
    folder = read(tmp_path / "a")
    shards = read(tmp_path / "b")
    assert [row["label"] for row in shards] == ["0"] * 5 + ["1"] * 5
    assert shards[0]["path"] == f"{tmp_path}/photographs-000000.tar/cracked-0.png"
    for name in ("classes", "scores", "features", "error"):
        assert [row[name] for row in shards] == [row[name] for row in folder]


def test_tables_and_addresses_are_sources_too(photographs, bundle, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("file,label\ncracked/3.png,good\nsound/0.png,bad\n")
    said = ["data.columns.path=file", f"data.images={photographs}"]
    ehm.predict_source(table, bundle=bundle, out=tmp_path / "a", device="cpu", overrides=said)
    assert [(row["path"], row["label"]) for row in read(tmp_path / "a")] == [
        (str(photographs / "cracked/3.png"), "good"),
        (str(photographs / "sound/0.png"), "bad"),
    ]
    (tmp_path / "store").mkdir()
    with tarfile.open(tmp_path / "store/part-0.tar", "w") as archive:
        for number in range(3):
            archive.add(photographs / f"cracked/{number}.png", f"{number}.png")
    said = [f"data.cache_folder={tmp_path / 'cache'}"]
    address = f"file://{tmp_path}/store"
    ehm.predict_source(address, bundle=bundle, out=tmp_path / "b", device="cpu", overrides=said)
    alone = ehm.predict(bundle, [photographs / f"cracked/{number}.png" for number in range(3)], device="cpu")
    for row, prediction in zip(read(tmp_path / "b"), alone, strict=True):
        np.testing.assert_array_equal(np.float32(row["features"]), prediction.features)


def test_a_folder_holds_the_predictions_of_one_job(photographs, bundle, tmp_path):
    arguments = {"out": tmp_path / "out", "device": "cpu"}
    ehm.predict_source(photographs, bundle=bundle, **arguments)
    described = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert described["images"] == 10
    with pytest.raises(ConfigError, match="holds predictions with --top 5, and this is 3"):
        ehm.predict_source(photographs, bundle=bundle, top=3, **arguments)
    with pytest.raises(ConfigError, match="holds predictions with --part-size 4096, and this is 5"):
        ehm.predict_source(photographs, bundle=bundle, part_size=5, **arguments)
    other = make_bundle(tmp_path / "other", outputs=("logits",)).path
    with pytest.raises(ConfigError, match="holds predictions with weights of the hash"):
        ehm.predict_source(photographs, bundle=other, **arguments)
    (photographs / "cracked" / "0.png").rename(photographs / "cracked" / "9.png")
    with pytest.raises(ConfigError, match="holds predictions with images of the hash"):
        ehm.predict_source(photographs, bundle=bundle, **arguments)
    for text, sentence in (("{", "not the settings of a bulk prediction: Expecting"), ("[]", "not the settings of a")):
        (tmp_path / "out" / "_job.json").write_text(text)
        with pytest.raises(ConfigError, match=f"_job.json: {sentence}"):
            ehm.predict_source(photographs, bundle=bundle, **arguments)
    (tmp_path / "out" / "_job.json").unlink()
    with pytest.raises(ConfigError, match="holds Parquet files of something else"):
        ehm.predict_source(photographs, bundle=bundle, **arguments)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["SOURCE"], "SOURCE: name images behind the bundle"),
        (["SOURCE", "image.png", "--ray"], "--ray: is for a source"),
        (["SOURCE", "other", "--bundle", "BUNDLE", "--out", "OUT"], "takes one source"),
        (["SOURCE", "--bundle", "BUNDLE"], "needs --out"),
        (["SOURCE", "--bundle", "BUNDLE", "--out", "OUT", "--index", "flat"], "leave out --index"),
        (["SOURCE", "--bundle", "BUNDLE", "--out", "OUT", "--workers", "2"], "--workers: are processes of Ray"),
        (["SOURCE", "--bundle", "BUNDLE", "--out", "OUT", "--cpus", "0"], "--cpus 0: expected at least 1"),
        (["SOURCE", "--bundle", "PATCHES", "--out", "OUT"], "--bundle: gives patches, and rows take classes"),
    ],
)
def test_wrong_arguments_are_one_sentence(flags, sentence, photographs, bundle, tmp_path, capsys):
    make_bundle(tmp_path / "patches", outputs=("patches",))
    places = {"SOURCE": photographs, "BUNDLE": bundle, "OUT": tmp_path / "out", "PATCHES": tmp_path / "patches"}
    assert main(["predict", *(str(places.get(flag, flag)) for flag in flags)]) in (1, 2)
    said = capsys.readouterr().err.replace(str(photographs), "SOURCE")
    assert sentence in said
    assert not (tmp_path / "out").exists()

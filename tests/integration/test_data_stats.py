"""``ehm data stats`` measures what NumPy does, finds copies and damage, and writes what ``ehm train`` takes."""

import io
import tarfile

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from ehm import measure_data
from ehm.cli import main
from ehm.config import TrainConfig, load_config
from ehm.errors import DataError

RNG = np.random.default_rng(0)
SCENES = RNG.integers(100, 4000, (5, 14, 11, 7), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scenes"
    root.mkdir()
    for number, values in enumerate(SCENES):
        tifffile.imwrite(root / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
    return root


def test_means_and_deviations_are_those_of_numpy(folder, tmp_path, capsys):
    (folder / "copy.tif").write_bytes((folder / "3.tif").read_bytes())
    (folder / "torn.tif").write_bytes((folder / "3.tif").read_bytes()[:900])
    out = tmp_path / "stats"
    assert main(["data", "stats", str(folder), "--set", "data.range=[0, 3000]", "--out", str(out)]) == 0
    values = np.concatenate([SCENES, SCENES[3:4]]).clip(0, 3000) / 3000
    config = load_config(TrainConfig, out / "statistics.yaml")
    np.testing.assert_allclose(config.data.mean, values.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(config.data.std, values.std(axis=(0, 1, 2)), atol=1e-5)
    assert (config.data.channels, config.data.depth, config.data.range) == (7, 16, (0, 3000))
    said = " ".join(capsys.readouterr().out.split())
    assert "6 images read, 1 that cannot be read" in said
    assert "6 of 7 channels of unsigned integers of 16 bits" in said
    assert "1 files are copies of others" in said
    with Image.open(out / "thumbnails.png") as page:
        assert page.width > 500


def test_floats_without_a_range_go_by_what_they_have_and_say_so(tmp_path, capsys):
    values = RNG.normal(size=(3, 9, 8, 7)).astype(np.float32)
    values[0, 0, 0] = np.nan
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number}.npy", image)
    present = values[np.isfinite(values)]
    least = float(present.min())
    most = float(present.max())
    found = measure_data(str(tmp_path), overrides=["data.channels=7"], out=tmp_path / "stats")
    assert found.range_is_measured
    assert found.pixels.range == (least, most)
    expected = (np.nanmean(values, axis=(0, 1, 2)) - least) / (most - least)
    np.testing.assert_allclose(found.mean, expected, atol=1e-5)
    assert "Set the range that you know" in " ".join(capsys.readouterr().out.split())


def test_photographs_in_shards_are_measured_too(tmp_path):
    pictures = RNG.integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number, pixels in enumerate(pictures):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "png")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(member, data)
    found = measure_data(str(tmp_path), out=tmp_path / "stats")
    np.testing.assert_allclose(found.mean, pictures.mean(axis=(0, 1, 2)) / 255, atol=1e-5)
    np.testing.assert_allclose(found.std, pictures.std(axis=(0, 1, 2)) / 255, atol=1e-5)
    section = yaml.safe_load((tmp_path / "stats" / "statistics.yaml").read_text())["data"]
    assert sorted(section) == ["mean", "source", "std"]


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of its 1 images can be read \(.*a\.png: not an image"):
        measure_data(str(tmp_path), out=tmp_path / "stats")
    assert not (tmp_path / "stats").exists()

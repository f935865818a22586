"""Images of any channels and depth, beside what tifffile, NumPy and pydicom read from the same files."""

import io
import zlib

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from ehm.config import DataConfig, load_config
from ehm.config.pixel_format import PixelFormat
from ehm.data import EvalTransform, Loader, TrainTransform, open_source
from ehm.data.channel_images import resize_channels
from ehm.data.decoding import dicom as dicom_module
from ehm.data.decoding.channels import read_channels, read_channels_size
from ehm.data.decoding.tiff import Tiff
from ehm.errors import BrokenImage, DataError

SEVEN = PixelFormat(7, 16)
RNG = np.random.default_rng(3)
VALUES = RNG.integers(0, 65536, (20, 31, 7), dtype=np.uint16)
LAYOUTS = {
    "pixels": {"planarconfig": "contig"},
    "planes": {"planarconfig": "separate"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16), "compression": "deflate", "predictor": True},
    "BigTIFF": {"planarconfig": "contig", "bigtiff": True},
}


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", metadata=None, **options)
    file.seek(0)
    return file


def npy(values, **options):
    file = io.BytesIO()
    np.save(file, values, **options)
    file.seek(0)
    return file


def dicom(stored, *, bits=12, slope=1, intercept=0, window=None, photometric="MONOCHROME2", deflated=False):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope = slope
    dataset.RescaleIntercept = intercept
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    if window is not None:
        dataset.WindowCenter, dataset.WindowWidth = window
    dataset.PixelData = stored.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiff_has_the_values_that_tifffile_reads(layout):
    stored = VALUES.transpose(2, 0, 1) if layout == "planes" else VALUES
    file = tiff(stored, **LAYOUTS[layout])
    reference = tifffile.imread(file)
    file.seek(0)
    if layout == "planes":
        reference = reference.transpose(1, 2, 0)
    np.testing.assert_array_equal(read_channels(file, SEVEN, "x"), reference)


def test_pages_are_channels_and_reduced_versions_are_none():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for channel in range(7):
            writer.write(VALUES[..., channel], photometric="minisblack", metadata=None)
            if channel == 0:
                writer.write(VALUES[::2, ::2, 0], photometric="minisblack", metadata=None, subfiletype=1)
    file.seek(0)
    np.testing.assert_array_equal(read_channels(file, SEVEN, "x"), VALUES)
    with pytest.raises(BrokenImage, match=r"x: has 7 channels of unsigned integers of 16 bits, and the model takes 5"):
        read_channels(file, PixelFormat(5, 16), "x")


def test_a_range_is_black_and_white_and_missing_values_are_black():
    values = VALUES.astype(np.int16)
    values[3, 4] = -9999
    stated = PixelFormat(7, 16, (-1000.0, 9000.0))
    found = read_channels(tiff(values, planarconfig="contig", extratags=[(42113, "s", 0, "-9999", True)]), stated, "x")
    expected = np.rint((np.clip(values.astype(float), -1000, 9000) + 1000) * 6.5535)
    expected[values == -9999] = 0
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(BrokenImage, match=r"signed integers of 16 bits, whose range is not known; data\.range="):
        read_channels(tiff(values, planarconfig="contig"), SEVEN, "x")


def test_an_array_may_have_its_channels_first_or_last():
    floats = RNG.normal(size=(9, 8, 7)).astype(np.float32)
    floats[0, 0, 0] = np.nan
    pixels = PixelFormat(7, "float", (-2.0, 2.0))
    expected = np.nan_to_num((floats.clip(-2, 2) + 2) / 4)
    for stored in (floats, floats.transpose(2, 0, 1)):
        found = read_channels(npy(stored), pixels, "x")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(read_channels(npy(VALUES[..., 0]), PixelFormat(1, 16), "x")[..., 0], VALUES[..., 0])


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = npy(np.array([[Trap()]]), allow_pickle=True)
    with pytest.raises(BrokenImage, match="holds values of type object"):
        read_channels(file, SEVEN, "x")
    assert not (tmp_path / "ran").exists()


def test_a_dicom_file_has_the_values_that_pydicom_reads():
    stored = RNG.integers(0, 4096, (12, 9), dtype=np.uint16)
    file = dicom(stored, intercept=-1024, window=(40, 400))
    dataset = pydicom.dcmread(file)
    file.seek(0)
    units = apply_rescale(dataset.pixel_array, dataset)
    full = read_channels(file, PixelFormat(1, 16), "x")[..., 0]
    np.testing.assert_array_equal(full, np.rint(stored / 4095 * 65535))
    # the window of the file, as pydicom's own function shows it in 12 bits
    shown = (apply_windowing(units, dataset) + 1024) / 4095
    windowed = read_channels(file, PixelFormat(1, "float", window=True), "x")[..., 0]
    np.testing.assert_allclose(windowed, shown, atol=1e-6)
    stated = read_channels(file, PixelFormat(1, 8, (-160.0, 240.0)), "x")[..., 0]
    np.testing.assert_array_equal(stated, np.rint((units.clip(-160, 240) + 160) / 400 * 255))
    inverted = read_channels(dicom(stored, photometric="MONOCHROME1"), PixelFormat(1, 16), "x")[..., 0]
    np.testing.assert_array_equal(inverted, np.rint((4095 - stored) / 4095 * 65535))


def test_the_frames_of_a_dicom_file_are_channels():
    frames = RNG.integers(-500, 500, (3, 6, 5)).astype(np.int16)
    found = read_channels(dicom(frames, bits=16), PixelFormat(3, 16), "x")
    np.testing.assert_array_equal(found, (frames.astype(int) + 32768).transpose(1, 2, 0))
    without = dicom(frames[0], bits=16)
    with pytest.raises(BrokenImage, match=r"x: names no window; data\.window=false"):
        read_channels(without, PixelFormat(1, 16, window=True), "x")


def test_a_file_of_other_channels_is_refused_before_it_is_unpacked(monkeypatch):
    def fail(*_):
        raise AssertionError("unpacked")

    monkeypatch.setattr(Tiff, "read_rows", fail)
    monkeypatch.setattr(FileDataset, "pixel_array", property(fail))
    with pytest.raises(BrokenImage, match=r"x: has 7 channels of unsigned integers of 16 bits, and the model takes 5"):
        read_channels(tiff(VALUES, planarconfig="contig", compression="deflate"), PixelFormat(5, 16), "x")
    frames = dicom(np.zeros((3, 6, 5), np.uint16))
    with pytest.raises(BrokenImage, match=r"x: has 3 channels of unsigned integers of 12 bits, and the model takes 5"):
        read_channels(frames, PixelFormat(5, 16), "x")


def test_a_deflated_dicom_file_may_unpack_to_so_much(monkeypatch):
    stored = np.zeros((200, 300), np.uint16)
    file = dicom(stored, deflated=True)
    np.testing.assert_array_equal(read_channels(file, PixelFormat(1, 16), "x")[..., 0], stored)
    assert len(file.getvalue()) < 2000
    monkeypatch.setattr(dicom_module, "_MOST_UNPACKED", stored.nbytes)
    monkeypatch.setattr(dicom_module, "_PIECE", 1000)
    for read in (read_channels, lambda file, pixels, name: read_channels_size(file, name, ())):
        with pytest.raises(BrokenImage, match="x: a deflated DICOM file that unpacks to more than"):
            read(file, PixelFormat(1, 16), "x")


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    file.seek(0)
    return file


def png16(values):
    """Write RGB of 16 bits, which Pillow cannot."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = b"\x89PNG\r\n\x1a\n"
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, {3: 2, 4: 6}[channels], 0, 0, 0])
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        chunks += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return io.BytesIO(chunks)


def test_a_png_keeps_all_of_its_bits_and_channels():
    grey = VALUES[..., 0]
    np.testing.assert_array_equal(read_channels(png(grey), PixelFormat(1, 16), "x")[..., 0], grey)
    for count in (3, 4):
        found = read_channels(png16(VALUES[..., :count]), PixelFormat(count, 16), "x")
        np.testing.assert_array_equal(found, VALUES[..., :count])
    bytes_of_four = (VALUES[..., :4] >> 8).astype(np.uint8)
    np.testing.assert_array_equal(read_channels(png(bytes_of_four), PixelFormat(4), "x"), bytes_of_four)


@pytest.mark.parametrize(
    ("file", "pixels", "said"),
    [
        (png(VALUES[..., 0].astype(np.uint8)), PixelFormat(1, 16), "data.depth 16 reads integers of 9 to 16 bits"),
        (npy(np.zeros((4, 4), np.float32)), PixelFormat(1, 16), "data.depth 16 reads integers of 9 to 16 bits"),
        (npy(np.zeros((4, 4), np.uint8)), PixelFormat(1, "float", (0, 1)), "values of more than 8 bits"),
        (npy(np.zeros((4, 4), np.float32)), PixelFormat(1), "data.range states which of them"),
        (npy(np.zeros((4, 4, 4, 4), np.uint8)), PixelFormat(4), r"has the shape \(4, 4, 4, 4\)"),
        (png(np.zeros((4, 4, 3), np.uint8)), PixelFormat(1), "has 3 channels of unsigned integers of 8 bits"),
    ],
)
def test_what_is_not_the_models_is_refused_with_a_sentence(file, pixels, said):
    with pytest.raises(BrokenImage, match=said):
        read_channels(file, pixels, "x")


def test_a_resize_is_that_of_torch_with_antialiasing():
    image = RNG.random((37, 23, 7)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, (16, 40), mode="bilinear", align_corners=False, antialias=True)[
        0
    ].permute(1, 2, 0)
    found = resize_channels(image, (40, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_channels_are_cut_as_a_photograph_is():
    """Both ways of cutting give the same pixels of three channels in 8 bits."""
    photograph = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(photograph)
    pairs = [
        (EvalTransform((24, 32)), ()),
        (EvalTransform((40, 40), (20, 20), "border", fill=(9, 8, 7), rounding="nearest"), ()),
        (TrainTransform((24, 32), random_erasing=1.0), (5,)),
    ]
    for transform, seed in pairs:
        generators = [np.random.default_rng(seed) if seed else None for _ in range(2)]
        np.testing.assert_array_equal(transform(photograph, generators[0]), transform(image, generators[1]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_batches_in_the_depth_of_the_images(tmp_path, workers):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", VALUES + np.uint16(number))
    config = load_config(DataConfig, {"source": str(tmp_path), "channels": 7, "depth": 16})
    source = open_source(config)
    transform = EvalTransform((20, 31), (20, 31), pixels=config.pixels)
    with Loader(source, transform, batch_size=4, seed=0, shuffle=False, drop_last=False, workers=workers) as loader:
        (batch,) = loader.batches(0, 1)
        expected = np.stack([VALUES + np.uint16(number) for number in range(4)])
        assert batch.images.dtype == np.uint16
        np.testing.assert_array_equal(batch.images, expected)


def test_arrays_beside_photographs_are_left_alone(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    np.save(tmp_path / "features.npy", VALUES)
    source = open_source(load_config(DataConfig, {"source": str(tmp_path)}))
    assert len(source) == 1
    assert any("of a format that is not read (features.npy)" in note for note in source.notes)
    with pytest.raises(DataError, match=r"data\.channels: fashion-mnist has photographs|no "):
        open_source(load_config(DataConfig, {"source": "fashion-mnist", "channels": 1}))

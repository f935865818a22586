"""Images in the rows of Parquet and Arrow files, written by pyarrow and pandas, in a folder and in a store."""

import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import ipc, parquet
from s3_server import CUT_OFF, UNAVAILABLE

from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source
from ehm.data.sources.identity import identify_source
from ehm.errors import BrokenImage, DataError

pytestmark = pytest.mark.usefixtures("calm_store")


def encode(number):
    image = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image, "PNG")
    return image.getvalue()


def hub_table(numbers):
    """A table as the package datasets writes it: images as structures, classes named in the schema."""
    rows = [{"bytes": encode(number), "path": f"{number}.png"} for number in numbers]
    labels = [number % 2 for number in numbers]
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table({"image": rows, "label": labels}, schema=schema)


@pytest.fixture(scope="module")
def files(store_server, tmp_path_factory):
    """Two training files with groups of five rows, and one of validation, in a folder and in the store."""
    folder = tmp_path_factory.mktemp("rows") / "data"
    folder.mkdir()
    parquet.write_table(hub_table(range(12)), folder / "train-00000-of-00002.parquet", row_group_size=5)
    parquet.write_table(hub_table(range(12, 24)), folder / "train-00001-of-00002.parquet", row_group_size=5)
    parquet.write_table(hub_table(range(24, 28)), folder / "validation-00000-of-00001.parquet")
    return folder, store_server.put_folder(folder, "rows")


@pytest.fixture
def opened(tmp_path):
    def open_it(source, split="train", **settings):
        settings = {"cache_folder": str(tmp_path / "cache"), "retries": 3, **settings}
        return open_source(DataConfig(source=str(source), **settings), split)

    return open_it


def pixels_of(source, index):
    return np.asarray(source.load(index))


def expected_pixels(number):
    return np.asarray(Image.open(io.BytesIO(encode(number))))


@pytest.mark.parametrize("cache", [1, 0])
def test_rows_are_the_images_that_were_written(files, opened, cache):
    folder, address = files
    for source in (folder, address):
        train = opened(source, cache=cache)
        assert (len(train), train.classes) == (24, ("cat", "dog"))
        assert train.labels.tolist() == [number % 2 for number in range(24)]
        assert train.name(13) == f"{source}/train-00001-of-00002.parquet/13.png"
        for index in (23, 0, 13, 14, 4, 5):
            np.testing.assert_array_equal(pixels_of(train, index), expected_pixels(index))
        val = opened(source, "val", cache=cache)
        np.testing.assert_array_equal(pixels_of(val, 3), expected_pixels(27))
    assert identify_source(opened(folder)) == identify_source(opened(address))


def test_batches_from_a_failing_store_are_those_of_the_folder(store_server, files, opened):
    def read(source, workers):
        options = {"batch_size": 6, "seed": 1, "shuffle": True, "drop_last": True, "workers": workers}
        with Loader(source, TrainTransform((16, 16)), **options) as loader:
            return list(loader.batches(0, 6)), loader.unreadable

    expected, _ = read(opened(files[0]), 0)
    stored = opened(files[1])
    store_server.fault = lambda path: {0: UNAVAILABLE, 2: CUT_OFF}.get(len(store_server.reads) % 5)
    for workers in (0, 2):
        batches, unreadable = read(stored, workers)
        assert unreadable == {}
        for one, other in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(one.images, other.images)
    store_server.reads.clear()
    read(opened(files[1]), 2)
    assert store_server.reads == []  # all groups are in the cache


def test_columns_of_other_writers(tmp_path, opened):
    frame = pd.DataFrame({"picture": [encode(1), encode(2), None], "kind": ["b", "a", "b"], "thumbnail": [b"x"] * 3})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns of bytes \(picture, thumbnail\); .* data\.columns\.path"):
        opened(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet", columns={"path": "picture", "label": "kind"})
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0, 1])
    np.testing.assert_array_equal(pixels_of(source, 1), expected_pixels(2))
    with pytest.raises(BrokenImage, match=r"a\.parquet/row-000002: the row has no image"):
        source.load(2)
    chosen = opened(tmp_path / "a.parquet", columns={"path": "picture", "label": "kind"}, classes=["a"])
    np.testing.assert_array_equal(pixels_of(chosen, 0), expected_pixels(2))


def test_a_table_of_paths_stays_a_table(tmp_path, images, opened):
    pd.DataFrame({"path": ["00.png", "01.png"]}).to_parquet(images / "table.parquet")
    assert len(opened(images / "table.parquet")) == 2


def test_folders_that_datasets_saved(tmp_path, opened):
    for part, numbers in (("train", range(6)), ("test", range(6, 9))):
        folder = tmp_path / "saved" / part
        folder.mkdir(parents=True)
        table = hub_table(numbers)
        with ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
        (folder / "state.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = opened(tmp_path / "saved")
    assert (len(source), source.classes) == (6, ("cat", "dog"))
    np.testing.assert_array_equal(pixels_of(source, 5), expected_pixels(5))
    assert len(opened(tmp_path / "saved" / "test")) == 3


def test_a_damaged_file_is_one_sentence(tmp_path, files, opened):
    path = tmp_path / "cut.parquet"
    path.write_bytes((files[0] / "train-00000-of-00002.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet is not a complete Parquet or Arrow file"):
        opened(path, layout="rows")


@pytest.fixture
def hub(files):
    """A server that answers as the Hugging Face Hub does for a data set of the files above."""
    folder = files[0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path == "/api/datasets/somebody/pets":
                self.answer(json.dumps({"id": "somebody/pets", "sha": "a" * 40, "siblings": [], "tags": []}).encode())
            elif path == "/api/datasets/somebody/pets/tree/main":
                listed = []
                for file in sorted(folder.iterdir()):
                    listed.append({"type": "file", "oid": "b" * 40, "size": file.stat().st_size, "path": file.name})
                self.answer(json.dumps(listed).encode())
            elif path.startswith("/datasets/somebody/pets/resolve/main/"):
                data = (folder / path.rpartition("/")[2]).read_bytes()
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                self.answer(data[int(first) : int(last) + 1], 206)
            else:
                self.send_error(404)

        def answer(self, body, status=200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


HUB_SCRIPT = """
import hashlib, sys
from dataclasses import asdict
from ehm.config import DataConfig
from ehm.data import open_source
from ehm.data.sources.identity import identify_source
source = open_source(DataConfig(source="hf://datasets/somebody/pets", cache_folder=sys.argv[1], retries=0), "train")
print(len(source), *source.classes, source.split, source.name(13))
print(asdict(identify_source(source)))
"""


def test_a_data_set_of_the_hub_is_read_by_name(hub, files, opened, tmp_path):
    # a process of its own: huggingface_hub reads the address of the Hub when it is imported
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_a_token_for_tests"}
    command = [sys.executable, "-c", HUB_SCRIPT, str(tmp_path / "hub-cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    first, identity = done.stdout.splitlines()
    assert first == "24 cat dog train hf://datasets/somebody/pets/train-00001-of-00002.parquet/13.png", done.stderr
    # of the bytes of all its images
    assert identity == str(asdict(identify_source(opened(files[0]))))

"""Shards in a store: an S3 server of moto's, with faults, compared with the same shards in a folder."""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
from made_bundles import make_bundle
from PIL import Image
from pyarrow import parquet
from s3_server import CREDENTIALS, CUT_OFF, SLOW, STALLED, UNAVAILABLE
from tiny import RUN, TINY

from ehm.cli import main
from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source
from ehm.data.sources.identity import identify_source
from ehm.data.stores import store as store_module
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint

pytest.importorskip("s3fs")


pytestmark = pytest.mark.usefixtures("calm_store")


def write_shard(path, first, count, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            image = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(image, "PNG")
            for suffix, data in ((".png", image.getvalue()), (".cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:05d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(store_server, tmp_path_factory):
    """Three shards of twelve images in train/ and one in val/, in a folder and in the store."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    rng = np.random.default_rng(0)
    for shard in range(3):
        write_shard(folder / "train" / f"s-{shard:03d}.tar", 12 * shard, 12, rng)
    write_shard(folder / "val" / "s-000.tar", 90, 6, rng)
    return folder, store_server.put_folder(folder, "set")


@pytest.fixture
def opened(tmp_path):
    """Open a source with a cache of its own, or with settings."""

    def open_it(source, split="train", **settings):
        settings = {"cache_folder": str(tmp_path / "cache"), "retries": 3, **settings}
        return open_source(DataConfig(source=str(source), **settings), split)

    return open_it


def read_batches(source, start, stop, workers=0, rank=0, world_size=1, strict=False):
    options = {"batch_size": 8, "seed": 3, "shuffle": True, "drop_last": True, "strict": strict}
    transform = TrainTransform((16, 16))
    with Loader(source, transform, workers=workers, rank=rank, world_size=world_size, **options) as loader:
        return list(loader.batches(start, stop)), loader.unreadable


def assert_alike(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_batches_of_a_store_are_those_of_the_folder(shards, opened):
    folder, address = shards
    local = opened(folder)
    stored = opened(address)
    assert stored.notes[0] == local.notes[0] == "3 tar shards with parts train (3), val (1); 3 classes"
    assert identify_source(stored) == identify_source(local)
    expected, _ = read_batches(local, 0, 9)
    assert_alike(read_batches(stored, 0, 9)[0], expected)
    # more workers than shards, in the middle of an epoch
    assert_alike(read_batches(stored, 5, 9, workers=4)[0], expected[5:])
    assert len(opened(address, "val")) == 6


def test_a_warm_cache_asks_the_store_for_nothing(store_server, shards, opened):
    stored = opened(shards[1])
    read_batches(stored, 0, 9)
    # each shard is one block, which the index has read
    assert Counter(store_server.reads) == {f"/bucket/set/{name}": 1 for name in names_of_shards()}
    store_server.reads.clear()
    read_batches(opened(shards[1]), 0, 9, workers=2)
    assert store_server.reads == []


def names_of_shards():
    return ["train/s-000.tar", "train/s-001.tar", "train/s-002.tar", "val/s-000.tar"]


def test_without_a_cache_an_image_is_one_read_of_its_own_bytes(store_server, shards, opened):
    stored = opened(shards[1], cache=0)
    store_server.reads.clear()
    assert_alike(read_batches(stored, 0, 4)[0], read_batches(opened(shards[0]), 0, 4)[0])
    assert len(store_server.reads) == 32
    store_server.reads.clear()
    identify_source(opened(shards[1], cache=0))  # with the index that was kept
    assert len(store_server.reads) == len(stored)


@pytest.mark.parametrize("fault", [UNAVAILABLE, CUT_OFF, SLOW])
def test_reads_that_fail_now_and_then_are_tried_again(store_server, shards, opened, fault):
    expected, _ = read_batches(opened(shards[0]), 0, 4)
    stored = opened(shards[1], cache=0, retries=8)
    store_server.reads.clear()
    store_server.fault = lambda path: fault if len(store_server.reads) % 3 == 0 else None
    batches, unreadable = read_batches(stored, 0, 4)
    assert unreadable == {}
    assert_alike(batches, expected)
    assert len(store_server.reads) > 32 or fault == SLOW


def test_a_server_that_stalls_is_asked_again(store_server, shards, opened, monkeypatch):
    monkeypatch.setattr(store_module, "_READ_SECONDS", 1)
    stored = opened(shards[1], cache=0)
    expected = opened(shards[0]).load(7).tobytes()
    store_server.reads.clear()
    store_server.fault = lambda path: STALLED if len(store_server.reads) == 1 else None
    assert stored.load(7).tobytes() == expected
    assert len(store_server.reads) == 2
    store_server.fault = lambda path: STALLED
    stored.reader.store.retries = 0
    with pytest.raises(BrokenImage, match=r"s-000\.tar/00008\.png: .*[Tt]imeout"):
        stored.load(8)


def test_a_shard_that_vanishes_is_skipped_and_listed_or_an_error(store_server, shards, opened, tmp_path):
    folder, _ = shards
    address = store_server.put_folder(folder / "train", "vanishing")
    stored = opened(address, cache=0)
    store_server.delete("vanishing/s-001.tar")
    batches, unreadable = read_batches(stored, 0, 4, workers=2)
    assert {name.rpartition("/")[0] for name in unreadable} == {"s3://bucket/vanishing/s-001.tar"}
    assert set(unreadable.values()) == {"there is no such file"}
    read = np.concatenate([batch.indices for batch in batches])
    assert len(read) == 32
    assert not set(read.tolist()) & set(range(12, 24))
    with pytest.raises(BrokenImage, match=r"s3://bucket/vanishing/s-001\.tar/000\d\d\.png: there is no such file"):
        read_batches(stored, 0, 4, strict=True)


def test_a_store_that_is_gone_ends_the_run_soon(store_server, shards, opened, monkeypatch):
    stored = opened(shards[1], cache=0)
    monkeypatch.setattr(store_module, "FIRST_WAIT", 0.001)
    store_server.fault = lambda path: UNAVAILABLE
    store_server.reads.clear()
    with pytest.raises(DataError, match=r"100 images in a row cannot be read, the last one .*Service Unavailable"):
        read_batches(stored, 0, 4)
    assert len(store_server.reads) < 3000


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("s3://bucket/nothing", r"data\.source s3://bucket/nothing: (there is no such file|no \.tar)"),
        ("s3://no-bucket-of-ours/set", r"data\.source s3://no-bucket-of-ours/set: there is no such"),
        ("s3://bucket/set/train/s-{000..003}.tar", r"s-003\.tar: there is no such file"),
        ("ghost://bucket/set", r"data\.source ghost://bucket/set: .*ghost"),
    ],
)
def test_what_is_not_there_is_one_sentence(shards, opened, source, problem):
    with pytest.raises(DataError, match=problem):
        opened(source)


@pytest.mark.parametrize("source", ["set/train/s-{000..001}.tar", "set/train/s-00[01].tar", "set/train/*0.tar"])
def test_patterns_take_the_shards_that_they_name(shards, opened, source):
    shards_named = {"set/train/*0.tar": 1}.get(source, 2)
    found = opened(f"s3://bucket/{source}")
    assert len(found) == 12 * shards_named
    assert found.name(0) == "s3://bucket/set/train/s-000.tar/00000.png"


def test_ranks_share_fewer_shards_than_they_are(shards, opened):
    local = opened(shards[0])
    stored = opened(shards[1])
    for rank in range(4):
        expected, _ = read_batches(local, 0, 5, rank=rank, world_size=4)
        assert_alike(read_batches(stored, 0, 5, workers=rank % 2, rank=rank, world_size=4)[0], expected)


def test_a_web_server_is_read_through_ranges(store_server, shards, opened):
    pytest.importorskip("aiohttp")
    for name in names_of_shards():
        store_server.client.put_object_acl(Bucket="bucket", Key=f"set/{name}", ACL="public-read")
    stored = opened(f"{store_server.address}/bucket/set/train/s-{{000..002}}.tar", cache=0)
    assert_alike(read_batches(stored, 0, 3)[0], read_batches(opened(shards[0]), 0, 3)[0])


def test_an_address_with_credentials_is_refused_without_repeating_them(opened):
    for source in ("s3://AKID:hunter2secret@bucket/set", "https://host/a.tar?X-Amz-Signature=hunter2secret"):
        with pytest.raises(ConfigError, match=r"data\.source .* leave .* out of the address") as raised:
            opened(source)
        assert "hunter2secret" not in str(raised.value)


def test_a_shard_that_changes_is_read_anew(store_server, shards, opened, tmp_path):
    rng = np.random.default_rng(7)
    path = tmp_path / "changing" / "c.tar"
    for first in (0, 40):
        write_shard(path, first, 6, rng)
        address = store_server.put(path, "changing/c.tar")
        local = opened(path)
        stored = opened(address)
        assert stored.name(0) == f"s3://bucket/changing/c.tar/{first:05d}.png"
        for index in range(6):
            assert stored.load(index).tobytes() == local.load(index).tobytes()
    # the entries of the earlier version have gone
    assert len(list((tmp_path / "cache").glob("*/*/*"))) == 1


def test_no_secret_of_the_environment_is_shown(store_server, shards, opened, monkeypatch):
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]

    def refuse(*_, **__):
        raise OSError(f"denied for {secret} at https://h/x?X-Amz-Signature=abcdef123")

    stored = opened(shards[1], cache=0)
    monkeypatch.setattr(stored.reader.store.files, "cat_ranges", refuse)
    with pytest.raises(BrokenImage) as raised:
        stored.load(0)
    assert "denied for *** at https://h/x?X-Amz-Signature=***" in str(raised.value)


def list_arguments(source, out, *more):
    settings = {**TINY, **RUN, "data.workers": 2, "data.cache": 0.00005, "run.checkpoint_every": 0.3, "watch.every": 0}
    settings |= {"data.source": source, "data.cache_folder": out.parent / "cache"}
    named = [f"--set={key}={value}" for key, value in settings.items()]
    return ["train", "--device", "cpu", "--out", str(out), *named, *more]


def start_training(source, out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ehm.cli", *list_arguments(source, out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(300)
def test_a_run_from_a_store_that_is_killed_ends_like_one_from_the_folder(store_server, shards, tmp_path, capsys):
    folder, address = shards
    assert main(list_arguments(folder, tmp_path / "whole")) == 0

    killed = start_training(address, tmp_path / "killed")
    while newest_checkpoint(tmp_path / "killed" / "checkpoints") is None:  # in the middle of an epoch
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.kill()
    output, _ = killed.communicate()
    store_server.reads.clear()
    store_server.fault = lambda path: UNAVAILABLE if len(store_server.reads) < 3 else None
    assert main(list_arguments(address, tmp_path / "killed", "--resume")) == 0

    expected = open_checkpoint(tmp_path / "whole")
    found = open_checkpoint(tmp_path / "killed")
    assert found.metadata["step"] == expected.metadata["step"] == 18
    assert found.metadata["data"] == expected.metadata["data"]
    for name, array in expected.state.model.items():
        np.testing.assert_array_equal(found.state.model[name], array, err_msg=name)
    kept = (tmp_path / "cache").glob("*/*-*/*")
    assert 0 < sum(path.stat().st_size for path in kept) <= 50_000
    # no credential is in what the run wrote
    for file in (tmp_path / "killed").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(CREDENTIALS[name].encode() in content for name in list(CREDENTIALS)[:2]), file
    output += "".join(capsys.readouterr())
    assert "MB in a store" in " ".join(output.split())
    assert not any(CREDENTIALS[name] in output for name in list(CREDENTIALS)[:2])


def test_predict_reads_a_store_as_it_reads_the_folder(store_server, shards, tmp_path):
    folder, address = shards
    bundle = make_bundle(tmp_path / "bundle", outputs=("logits", "features")).path
    store_server.fault = lambda path: CUT_OFF if len(store_server.reads) % 4 == 0 else None
    tables = []
    for source in (folder, address):
        out = tmp_path / f"out-{len(tables)}"
        assert main(["predict", str(source), "--bundle", str(bundle), "--out", str(out), "--device", "cpu"]) == 0
        tables.append(parquet.read_table(out))
    expected, found = (table.drop_columns(["path"]).to_pylist() for table in tables)
    assert found == expected
    assert tables[1]["path"][0].as_py() == "s3://bucket/set/train/s-000.tar/00000.png"
    assert main(["predict", str(bundle), address]) == 2  # without --bundle, images are files

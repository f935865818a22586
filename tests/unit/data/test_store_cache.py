"""The local cache of stores: bounded, shared by processes, and sound after they are killed."""

import os
import signal
import subprocess
import sys

import pytest

from ehm.data.sources.coco_layouts import find_annotations
from ehm.data.sources.pair_layouts import recognise_pairs
from ehm.data.stores import cache as cache_module
from ehm.data.stores.addresses import hide_secrets, is_address
from ehm.data.stores.cache import Cache
from ehm.errors import DataError

WRITER = """
import hashlib, sys
from pathlib import Path
from ehm.data.stores.cache import Cache
from ehm.errors import DataError
cache = Cache(Path(sys.argv[1]), 200_000)
kept = 0
for number in range(400):
    name = f"group/file-1/{number % 100:06d}"
    data = hashlib.sha256(name.encode()).digest() * 125
    found = cache.read_part(name, 0, len(data))
    assert found in (None, data)
    cache._full_until = 0.0
    kept += cache.keep(name, data)
    if number == 50:
        print("going", flush=True)
print(kept)
"""


def sizes(folder):
    return sum(path.stat().st_size for path in folder.glob("*/*/*"))


def start_writer(folder):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)


def test_processes_share_a_bounded_folder_and_one_may_be_killed(tmp_path):
    writers = [start_writer(tmp_path) for _ in range(3)]
    assert writers[0].stdout.readline() == "going\n"
    os.kill(writers[0].pid, signal.SIGKILL)
    for writer in writers[1:]:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0, output
    writers[0].communicate()
    assert 0 < sizes(tmp_path) <= 200_000
    # what the killed one left is counted right, and the entries of a group that nobody uses give way
    cache = Cache(tmp_path, 200_000)
    for number in range(50):
        assert cache.keep(f"other/file-1/{number}", bytes(4000))
    assert sizes(tmp_path) == 200_000
    assert not list(tmp_path.glob("group/*/*"))


def test_entries_in_use_stay_and_what_does_not_fit_is_not_kept(tmp_path):
    first = Cache(tmp_path, 1000)
    assert first.keep("one/file-1/0", b"a" * 600)
    second = Cache(tmp_path, 1000)
    assert not second.keep("two/file-1/0", b"b" * 600)
    assert not second.has_room
    assert first.read_part("one/file-1/0", 10, 5) == b"aaaaa"
    assert first.read_part("one/file-1/0", 598, 5) is None  # beyond the end
    assert first.read_part("one/file-1/1", 0, 5) is None


def test_a_smaller_limit_removes_entries(tmp_path):
    cache = Cache(tmp_path, 10_000)
    for number in range(10):
        cache.keep(f"one/file-1/{number}", bytes(1000))
    smaller = Cache(tmp_path, 3000)
    smaller.claim("one")
    smaller.shrink()
    assert sizes(tmp_path) == 3000


def test_other_versions_of_a_file_go(tmp_path):
    cache = Cache(tmp_path, 10_000)
    for version in ("a", "b"):
        cache.keep(f"one/file-{version}/0", bytes(100))
        cache.keep(f"one/other-{version}/0", bytes(100))
    cache.drop_other_versions("one", {"file-b"})
    assert {path.name for path in tmp_path.glob("one/*-[ab]")} == {"file-b", "other-a", "other-b"}
    assert int((tmp_path / "usage").read_text()) == 300


def test_a_disk_without_room_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_FREE_ON_DISK", 1 << 60)
    assert not Cache(tmp_path, 10_000).keep("one/file-1/0", b"data")
    assert not Cache(tmp_path / "usage" / "below-a-file", 10_000).keep("one/file-1/0", b"data")


@pytest.mark.parametrize("source", ["s3://bucket/a", "https://host/a.tar", "simplecache::s3://bucket/a"])
def test_addresses_have_a_scheme(source):
    assert is_address(source)
    assert not is_address(source.replace("://", "/"))


def test_tasks_of_masks_and_boxes_say_that_they_read_folders():
    for open_it in (lambda: recognise_pairs("s3://bucket/a", "auto"), lambda: find_annotations("s3://bucket/a", "all")):
        with pytest.raises(DataError, match=r"data\.source s3://bucket/a: only folders of this machine are read here"):
            open_it()


def test_secrets_are_hidden():
    environment = {"AWS_SECRET_ACCESS_KEY": "abcdefghij", "HF_TOKEN": "hf_0123456789", "HOME": "/home/someone"}
    text = "abcdefghij at https://u:pw@host/a?X-Amz-Credential=AKID/2026&X-Amz-Date=1 by hf_0123456789 in /home/someone"
    shown = "*** at https://***@host/a?X-Amz-Credential=***&X-Amz-Date=1 by *** in /home/someone"
    assert hide_secrets(text, environment) == shown

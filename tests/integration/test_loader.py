"""The loader's promises: the same batches however they are made, broken files, and processes that end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ehm.config import DataConfig
from ehm.data import EvalTransform, Loader, TrainTransform, open_source
from ehm.errors import BrokenImage, ConfigError, DataError

FRAMEWORKS = ("torch", "timm", "torchvision", "mindspore", "tensorflow", "jax", "numba")


@dataclass
class Plain:
    """Images without files: image i is red, of value i; ``does`` is what happens in a worker that reads one."""

    count: int = 10
    split: str = "all"
    classes: tuple = ("even", "odd")
    broken: frozenset = frozenset()
    does: str = ""
    labels: np.ndarray = field(init=False)

    def __post_init__(self):
        self.labels = np.arange(self.count) % 2

    def __len__(self):
        return self.count

    def name(self, index):
        return f"image-{index}"

    def load(self, index):
        if index in self.broken:
            raise BrokenImage(f"image-{index}: torn")
        if self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "fail":
            raise ZeroDivisionError("a bug in the source")
        if self.does == "watch" and any(name in sys.modules for name in FRAMEWORKS):
            raise BrokenImage("a worker has a framework")
        reader = os.getpid() if self.does == "sign" else 0
        return Image.new("RGB", (8, 8), (index % 256, reader >> 8 & 255, reader & 255))


class Tiny:
    """One pixel of an image."""

    shape = (1, 1, 3)

    def __call__(self, image, rng):
        return np.asarray(image)[:1, :1]


def make(source, workers=0, transform=None, **options):
    defaults = {"batch_size": 4, "seed": 0, "shuffle": True, "drop_last": False}
    return Loader(source, transform or EvalTransform((4, 4)), workers=workers, **defaults | options)


def taken(source, start, stop, workers=0, **options):
    with make(source, workers, **options) as loader:
        return list(loader.batches(start, stop))


def indices(batches):
    return [batch.indices.tolist() for batch in batches]


def all_indices(batches):
    return list(chain(*indices(batches)))


def pids(batch):
    """Return the processes that read the images, to 16 bits, from a source that signs."""
    high, low = batch.images[:, 0, 0, 1].astype(int), batch.images[:, 0, 0, 2].astype(int)
    return set((high * 256 + low).tolist())


def equal(first, second):
    return len(first) == len(second) and all(
        (a.images == b.images).all() and (a.indices == b.indices).all() for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def folder(images):
    """The twelve pictures of conftest's, and two files that are none."""
    (images / "05-torn.png").write_bytes((images / "05.png").read_bytes()[:60])
    (images / "07-text.png").write_text("no picture")
    return open_source(DataConfig(source=str(images)))


def test_any_number_of_workers_gives_the_same_batches(folder):
    transform = TrainTransform((24, 32), rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    options = {"transform": transform, "batch_size": 5, "seed": 7}
    inline = taken(folder, 0, 9, 0, **options)
    assert [len(batch.images) for batch in inline] == [5, 5, 4] * 3
    for workers in (1, 3):
        assert equal(inline, taken(folder, 0, 9, workers, **options))
    assert not equal(inline[:3], taken(folder, 0, 3, **options | {"seed": 8}))
    for batch in inline:
        assert batch.images.dtype == np.uint8
        assert batch.images.shape[1:] == (24, 32, 3)
        assert batch.images.flags["C_CONTIGUOUS"]
        assert batch.images.flags["OWNDATA"]
        assert batch.labels is None
        assert batch.indices.dtype == np.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_a_function_of_its_step(folder, workers):
    options = {"transform": TrainTransform((16, 16)), "batch_size": 4}
    whole = taken(folder, 0, 12, **options)
    assert equal(whole[5:11], taken(folder, 5, 11, workers, **options))
    assert taken(folder, 3, 3, workers, **options) == []


def test_pixels_depend_on_seed_epoch_and_index_alone(images):
    source = open_source(DataConfig(source=str(images)))
    transform = TrainTransform((16, 16))

    def by_index(start, stop, **options):
        batches = taken(source, start, stop, transform=transform, **options)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    reference = by_index(3, 6)
    other = by_index(1, 2, batch_size=12, shuffle=False)
    assert sorted(reference) == sorted(other) == list(range(12))
    assert all((reference[index] == other[index]).all() for index in reference)
    next_epoch = by_index(6, 9)
    assert sum((reference[index] == next_epoch[index]).all() for index in reference) < 3


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_image_once(count, batch_size, drop_last, seed):
    with make(Plain(count), batch_size=batch_size, drop_last=drop_last, seed=seed) as loader:
        steps = loader.steps_per_epoch
        first, second = (list(loader.batches(epoch * steps, (epoch + 1) * steps)) for epoch in (0, 1))
    for epoch in (first, second):
        seen = all_indices(epoch)
        assert len(set(seen)) == len(seen)
        sizes = [len(batch.indices) for batch in epoch]
        if drop_last and count >= batch_size:
            assert sizes == [batch_size] * (count // batch_size)
        else:
            assert sorted(seen) == list(range(count))
            assert sizes == [batch_size] * (count // batch_size) + [count % batch_size] * bool(count % batch_size)
    if len(first[0].indices) > 5:
        assert indices(first) != indices(second)


def test_without_shuffling_the_order_is_the_sources():
    assert indices(taken(Plain(10), 2, 5, shuffle=False)) == [[8, 9], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_labels_belong_to_the_images():
    for batch in taken(Plain(11), 0, 6, workers=2):
        assert (batch.labels == batch.indices % 2).all()
        assert (batch.images[:, 0, 0, 0] == batch.indices).all()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch(world_size):
    options = {"batch_size": 8, "transform": EvalTransform((4, 4))}
    whole = indices(taken(Plain(30), 0, 8, **options))
    parts = [indices(taken(Plain(30), 0, 8, **options, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole
    sizes = [[len(batch) for batch in step] for step in zip(*parts, strict=True)]
    assert all(max(step) - min(step) <= 1 for step in sizes)


def test_a_subset_is_all_that_is_seen():
    subset = np.array([9, 3, 4, 0, 7])
    batches = taken(Plain(10, broken=frozenset({3})), 0, 40, subset=subset, batch_size=3)
    assert set(all_indices(batches)) == {9, 4, 0, 7}
    assert [len(batch.indices) for batch in batches] == [3, 2] * 20


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_replaced_and_listed(folder, workers, images):
    with make(folder, workers, transform=TrainTransform((16, 16))) as loader:
        batches = list(loader.batches(0, 2 * loader.steps_per_epoch))
        assert set(loader.unreadable) == {str(images / "05-torn.png"), str(images / "07-text.png")}
        assert loader.unreadable[str(images / "07-text.png")] == "not an image of a known format"
    assert equal(batches, taken(folder, 0, len(batches), transform=TrainTransform((16, 16))))
    names = {folder.name(index) for batch in batches for index in batch.indices}
    assert not names & set(loader.unreadable)
    assert sum(len(batch.indices) for batch in batches) == 2 * len(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_raises_the_first_broken_file(folder, workers):
    with make(folder, workers, strict=True) as loader, pytest.raises(BrokenImage, match=r"(torn|text)\.png: "):
        list(loader.batches(0, loader.steps_per_epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_files_is_an_error(workers):
    source = Plain(10, broken=frozenset(range(10)))
    with make(source, workers) as loader, pytest.raises(DataError, match=r"100 images in a row .* image-\d: torn"):
        next(loader.batches(0, 5))


def test_what_does_not_fit_is_said_at_once():
    with pytest.raises(DataError, match="nothing to load"):
        make(Plain(0))
    with pytest.raises(DataError, match="nothing to load"):
        make(Plain(3), subset=np.array([], dtype=np.int64))
    with pytest.raises(ConfigError, match="batch_size 6 is not a positive multiple of the 4"):
        make(Plain(9), batch_size=6, world_size=4)
    with pytest.raises(DataError, match="3 images cannot be shared by 4"):
        make(Plain(3), world_size=4)


def test_workers_stay_for_the_whole_range_and_the_next():
    with make(Plain(64, does="sign"), 2, batch_size=32) as loader:
        first = set.union(*(pids(batch) for batch in loader.batches(0, 8)))
        second = set.union(*(pids(batch) for batch in loader.batches(0, 2)))
    assert len(first) == 2
    assert first == second
    assert children() == []


def children():
    return [process for process in psutil.Process().children() if "ehm.data.workers" in " ".join(process.cmdline())]


def test_an_iterator_given_up_ends_its_workers():
    with make(Plain(64), 2) as loader:
        batches = loader.batches(0, 100)
        next(batches)
        assert len(children()) == 2
        batches.close()
        assert children() == []
        assert equal(list(loader.batches(2, 4)), list(islice(loader.batches(2, 9), 2)))
    assert children() == []


def test_an_error_in_the_loop_leaves_no_workers():
    batches = None
    with pytest.raises(KeyboardInterrupt), make(Plain(64), 2) as loader:  # noqa: PT012
        batches = loader.batches(0, 100)
        next(batches)
        raise KeyboardInterrupt
    assert children() == []


def test_a_loader_that_is_dropped_leaves_no_workers():
    loader = make(Plain(64), 2)
    next(loader.batches(0, 100))
    list(loader.batches(0, 1))
    del loader
    assert children() == []


def test_two_iterators_at_once():
    with make(Plain(20), 1) as loader:
        pairs = list(zip(loader.batches(0, 5), loader.batches(0, 5), strict=True))
    assert all(equal([first], [second]) for first, second in pairs)


def test_a_worker_that_dies_is_an_error():
    with (
        make(Plain(does="die"), 2) as loader,
        pytest.raises(DataError, match=r"worker was ended by signal 9.*memory"),
    ):
        list(loader.batches(0, 9))
    assert children() == []


def test_a_bug_in_a_worker_keeps_its_traceback():
    with make(Plain(does="fail"), 2) as loader, pytest.raises(RuntimeError, match=r"in load(.|\n)*a bug in the source"):
        list(loader.batches(0, 9))


def test_what_cannot_be_sent_to_workers_is_said():
    class Local(Plain):
        pass

    with make(Local(), 1) as loader, pytest.raises(DataError, match="cannot be sent to data workers"):
        next(loader.batches(0, 1))


def test_what_workers_cannot_import_is_said(tmp_path, images):
    mine = "class Mine(TrainTransform):\n    pass\n"
    text = SCRIPT.format(before=mine, each="pass").replace(" TrainTransform((", " Mine((")
    with run(tmp_path, text, str(images)) as process:
        _, errors = process.communicate(timeout=60)
    assert "cannot load the source or the transform: Can't get attribute 'Mine'" in errors
    assert process.returncode == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_batch_of_many_images(workers):
    for batch in taken(Plain(5000), 0, 2, workers, batch_size=4999, drop_last=True, transform=Tiny()):
        assert len(set(batch.indices.tolist())) == 4999
        assert (batch.images[:, 0, 0, 0] == batch.indices % 256).all()


def test_workers_import_no_framework():
    batches = taken(Plain(20, does="watch"), 0, 5, workers=2, strict=True)
    assert len(batches) == 5


@contextmanager
def run(tmp_path, text, *arguments, **options):
    """A script in a group of processes of its own, of which none is left behind a test that fails."""
    script = tmp_path / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


SCRIPT = """
import sys, time
print("started", flush=True)
from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source

{before}
source = open_source(DataConfig(source=sys.argv[1]))
loader = Loader(source, TrainTransform((16, 16)), batch_size=4, seed=0, shuffle=True, drop_last=True, workers=2)
for step, batch in enumerate(loader.batches(0, 10**9)):
    if step == 3:
        print("going", flush=True)
    {each}
"""


def test_a_script_needs_no_main_guard(tmp_path, images):
    text = SCRIPT.format(before="", each="if step == 5: break")
    with run(tmp_path, text, str(images)) as process:
        assert process.communicate(timeout=60) == ("started\ngoing\n", "")
    assert process.returncode == 0


def family(process):
    """Wait until the script is going, and give its workers."""
    while process.stdout.readline() != "going\n":
        assert process.poll() is None, process.stderr.read()
    workers = [child for child in psutil.Process(process.pid).children() if "workers" in " ".join(child.cmdline())]
    assert len(workers) == 2
    return workers


@pytest.mark.parametrize("each", ["pass", "time.sleep(600) if step == 3 else 0"])
def test_kill_9_of_the_parent_leaves_no_process(tmp_path, images, each):
    with run(tmp_path, SCRIPT.format(before="", each=each), str(images)) as process:
        workers = family(process)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_kill_9_with_another_child_holding_the_sockets(tmp_path, images):
    text = SCRIPT.format(before="import os", each="if step == 3: os.fork(), time.sleep(60)")
    with run(tmp_path, text, str(images)) as process:
        workers = family(process)
        while len(together := psutil.Process(process.pid).children()) < 3:
            time.sleep(0.05)
        forked = [child for child in together if child not in workers]
        process.kill()
        try:
            _, alive = psutil.wait_procs(workers, timeout=20)
        finally:
            for child in forked:
                child.kill()
    assert len(forked) == 1
    assert alive == []


def test_ctrl_c_ends_at_once_with_one_traceback(tmp_path, images):
    # a shell starts what runs in the background with SIGINT ignored, and these tests may run there
    before = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with run(tmp_path, SCRIPT.format(before=before, each="pass"), str(images)) as process:
        workers = family(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_data_imports_no_framework():
    code = f"import sys, ehm.data; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"

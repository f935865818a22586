"""Processes of the loader: they stay, they end with their loader however that ends, and their errors are told."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import islice

import psutil
import pytest
from numbered_images import FRAMEWORKS, NumberedImages, are_equal, load_batches, make_loader

from ehm.errors import DataError

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


def read_process_ids(batch):
    """Return the processes that read the images, to 16 bits, from a source that signs."""
    high, low = batch.images[:, 0, 0, 1].astype(int), batch.images[:, 0, 0, 2].astype(int)
    return set((high * 256 + low).tolist())


def find_workers(process_id=None):
    """Return the data workers of a process, or of this one."""
    children = psutil.Process(process_id).children()
    return [child for child in children if "ehm.data.workers" in " ".join(child.cmdline())]


@contextmanager
def run_script(tmp_path, text, *arguments):
    """Run a script in a group of processes of its own, of which none is left behind a test that fails."""
    script = tmp_path / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def wait_for_workers(process):
    """Wait until the script prints that it is going; returns its workers."""
    while process.stdout.readline() != "going\n":
        assert process.poll() is None, process.stderr.read()
    workers = find_workers(process.pid)
    assert len(workers) == 2
    return workers


def test_workers_stay_for_the_whole_range_and_the_next():
    with make_loader(NumberedImages(64, on_load="sign"), 2, batch_size=32) as loader:
        first = set.union(*(read_process_ids(batch) for batch in loader.batches(0, 8)))
        second = set.union(*(read_process_ids(batch) for batch in loader.batches(0, 2)))
    assert len(first) == 2
    assert first == second
    assert find_workers() == []


def test_an_iterator_given_up_ends_its_workers():
    with make_loader(NumberedImages(64), 2) as loader:
        batches = loader.batches(0, 100)
        next(batches)
        assert len(find_workers()) == 2
        batches.close()
        assert find_workers() == []
        assert are_equal(list(loader.batches(2, 4)), list(islice(loader.batches(2, 9), 2)))
    assert find_workers() == []


def test_an_error_in_the_loop_leaves_no_workers():
    batches = None
    with pytest.raises(KeyboardInterrupt), make_loader(NumberedImages(64), 2) as loader:  # noqa: PT012
        batches = loader.batches(0, 100)
        next(batches)
        raise KeyboardInterrupt
    assert find_workers() == []


def test_a_loader_that_is_dropped_leaves_no_workers():
    loader = make_loader(NumberedImages(64), 2)
    next(loader.batches(0, 100))
    list(loader.batches(0, 1))
    del loader
    assert find_workers() == []


def test_a_worker_that_dies_is_an_error():
    with (
        make_loader(NumberedImages(on_load="die"), 2) as loader,
        pytest.raises(DataError, match=r"worker was ended by signal 9.*memory"),
    ):
        list(loader.batches(0, 9))
    assert find_workers() == []


def test_a_bug_in_a_worker_keeps_its_traceback():
    with (
        make_loader(NumberedImages(on_load="fail"), 2) as loader,
        pytest.raises(RuntimeError, match=r"in load(.|\n)*a bug in the source"),
    ):
        list(loader.batches(0, 9))


def test_what_cannot_be_sent_to_workers_is_said():
    class Local(NumberedImages):
        pass

    with make_loader(Local(), 1) as loader, pytest.raises(DataError, match="cannot be sent to data workers"):
        next(loader.batches(0, 1))


def test_what_workers_cannot_import_is_said(tmp_path, images):
    mine = "class Mine(TrainTransform):\n    pass\n"
    text = SCRIPT.format(before=mine, each="pass").replace(" TrainTransform((", " Mine((")
    with run_script(tmp_path, text, str(images)) as process:
        _, errors = process.communicate(timeout=60)
    assert "cannot load the source or the transform: Can't get attribute 'Mine'" in errors
    assert process.returncode == 1


def test_workers_import_no_framework():
    batches = load_batches(NumberedImages(20, on_load="watch"), 0, 5, workers=2, strict=True)
    assert len(batches) == 5


def test_a_script_needs_no_main_guard(tmp_path, images):
    text = SCRIPT.format(before="", each="if step == 5: break")
    with run_script(tmp_path, text, str(images)) as process:
        assert process.communicate(timeout=60) == ("started\ngoing\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("each", ["pass", "time.sleep(600) if step == 3 else 0"])
def test_kill_9_of_the_parent_leaves_no_process(tmp_path, images, each):
    with run_script(tmp_path, SCRIPT.format(before="", each=each), str(images)) as process:
        workers = wait_for_workers(process)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_kill_9_with_another_child_holding_the_sockets(tmp_path, images):
    text = SCRIPT.format(before="import os", each="if step == 3: os.fork(), time.sleep(60)")
    with run_script(tmp_path, text, str(images)) as process:
        workers = wait_for_workers(process)
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
    with run_script(tmp_path, SCRIPT.format(before=before, each="pass"), str(images)) as process:
        workers = wait_for_workers(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_data_imports_no_framework():
    code = f"import sys, ehm.data; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"

"""The arrays that hierarchies are built from, and the threads that build them."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from ehm.masking import _jit, _parallel, build_hierarchy
from ehm.masking.similarity import convert_similarity


@pytest.fixture(scope="module")
def similarity():
    values = np.random.default_rng(0).random((12, 60, 60), np.float32)
    return (values + values.transpose(0, 2, 1)) / 2


class Foreign:
    """An array of another framework: NumPy reads it through one of the two protocols."""

    def __init__(self, array, *protocols):
        self._array = array
        for protocol in protocols:
            setattr(type(self), protocol, getattr(self, protocol[2:-2]))

    @staticmethod
    def array(self, dtype=None, copy=None):
        return self._array

    @staticmethod
    def dlpack(self, **options):
        return self._array.__dlpack__(**options)

    @staticmethod
    def dlpack_device(self):
        return self._array.__dlpack_device__()


class ThroughArray(Foreign):
    pass


class ThroughDlpack(Foreign):
    pass


def test_arrays_of_other_frameworks_are_read_in_place(similarity):
    for foreign in (
        ThroughArray(similarity, "__array__"),
        ThroughDlpack(similarity, "__dlpack__", "__dlpack_device__"),
    ):
        assert np.shares_memory(convert_similarity(foreign), similarity)
        np.testing.assert_array_equal(build_hierarchy(foreign).parent, build_hierarchy(similarity).parent)


def test_an_array_on_a_device_is_refused():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(ValueError, match="similarity must be an array in host memory: can't convert cuda:0"):
        build_hierarchy(OnDevice())


def test_layouts_and_types(similarity):
    expected = build_hierarchy(similarity).parent
    locked = similarity.copy()
    locked.flags.writeable = False
    strided = np.repeat(similarity, 2, axis=2)[:, :, ::2]
    for array in (locked, strided, np.asfortranarray(similarity), similarity[::-1][::-1], similarity.tolist()):
        before = np.array(array)
        np.testing.assert_array_equal(build_hierarchy(array).parent, expected)
        np.testing.assert_array_equal(array, before)
    whole = np.round(similarity * 7)
    np.testing.assert_array_equal(build_hierarchy(whole.astype(int)).parent, build_hierarchy(whole).parent)
    half = similarity.astype(np.float16)
    np.testing.assert_array_equal(build_hierarchy(half).parent, build_hierarchy(half.astype(np.float32)).parent)


def test_reading_does_not_lock_the_callers_array(similarity):
    array = similarity.copy()
    build_hierarchy(array)
    assert array.flags.writeable


def test_images_do_not_influence_each_other(similarity):
    together = build_hierarchy(similarity)
    for b in range(len(similarity)):
        alone = build_hierarchy(similarity[b : b + 1])
        np.testing.assert_array_equal(together.parent[b], alone.parent[0])
        np.testing.assert_array_equal(together.similarity[b], alone.similarity[0])


@pytest.mark.parametrize("threads", [1, 2, 3, 12, 50])
def test_threads_do_not_change_the_result(similarity, threads, monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    np.testing.assert_array_equal(build_hierarchy(similarity, threads).parent, build_hierarchy(similarity, 1).parent)


def test_calls_from_several_threads_at_once(similarity, monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    expected = build_hierarchy(similarity)
    with ThreadPoolExecutor(8) as pool:
        for hierarchy in pool.map(lambda _: build_hierarchy(similarity), range(40)):
            np.testing.assert_array_equal(hierarchy.parent, expected.parent)
            np.testing.assert_array_equal(hierarchy.level, expected.level)


def test_every_image_is_visited_once_whatever_the_chunks(monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    for batch in range(1, 12):
        visits = np.zeros(batch, int)
        _parallel.run_over_batch(lambda part: np.add(part, 1, out=part), visits, entries=1, threads=5)
        assert (visits == 1).all()


def test_threads_live_on_from_call_to_call(monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    monkeypatch.setattr(_parallel, "_pool", None)
    seen = set()
    for _ in range(20):
        _parallel.run_over_batch(lambda part: seen.add(threading.current_thread()), np.zeros(9), entries=1, threads=3)
    assert all(thread.is_alive() for thread in seen)


def test_a_kernel_that_fails_is_heard_when_all_slices_are_done(monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    for failing in range(3):
        done = []

        def kernel(part, failing=failing, done=done):
            time.sleep(0 if part[0] == failing else 0.01)
            done.append(part[0])
            if part[0] == failing:
                raise ArithmeticError("no tree")

        with pytest.raises(ArithmeticError, match="no tree"):
            _parallel.run_over_batch(kernel, np.arange(3), entries=1, threads=3)
        assert sorted(done) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # which is what is tried
def test_a_forked_process_has_threads_of_its_own(similarity, monkeypatch):
    monkeypatch.setattr(_parallel, "ENTRIES_PER_THREAD", 1)
    expected = build_hierarchy(similarity, 3).parent
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # the parent's threads would never answer
        os._exit(not np.array_equal(build_hierarchy(similarity, 3).parent, expected))
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    njit = numba.njit

    def without_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available for file")
        return njit(*args, **options)

    monkeypatch.setattr(_jit.numba, "njit", without_folder)
    assert _jit.kernel(lambda x: x + 1)(1) == 2


def test_importing_loads_neither_numba_nor_a_framework():
    code = "import sys, ehm.masking; print({'numba', 'scipy', 'torch', 'mindspore', 'timm'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

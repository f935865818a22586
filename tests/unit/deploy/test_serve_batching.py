"""Dynamic batching: every request gets its own rows, and nobody waits for what concerns others."""

import asyncio
import random
import threading

import numpy as np
import pytest

from ehm.deploy.serve.inference.batching import Batcher
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.errors import RequestError


def double(images, names):
    return {name: images.reshape(len(images), -1).sum(axis=1, keepdims=True) * 2 for name in names}


class Gate:
    """A model that waits until it is let go, and remembers its batches."""

    def __init__(self):
        self.open = threading.Event()
        self.batches = []

    def __call__(self, images, names):
        self.batches.append((images.shape, tuple(names)))
        assert self.open.wait(20)
        return double(images, names)


def batcher(run=double, **changes):
    metrics = Metrics()
    options = {"max_batch": 4, "max_delay": 0.005, "queue": 100, **changes}
    made = Batcher(run, metrics=metrics.for_model("m"), **options)
    made.values = lambda name: metrics.registry.get_sample_value(name, {"model": "m"})
    return made


def ones(value, count=1, shape=(2,)):
    return np.full((count, *shape), value, np.float32)


def soon(seconds=20.0):
    return asyncio.get_running_loop().time() + seconds


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_a_request_can_bound_how_many_of_its_shape_run_together():
    async def main():
        gate = Gate()
        made = batcher(gate)
        first = asyncio.ensure_future(made.infer(ones(0), ["a"], soon()))
        await until(lambda: gate.batches)
        large = [asyncio.ensure_future(made.infer(ones(i, 1, (9,)), ["a"], soon(), 2)) for i in range(5)]
        small = asyncio.ensure_future(made.infer(ones(7, 6), ["a"], soon(), 99))
        await until(lambda: made.values("ehm_queue_images") == 11)
        gate.open.set()
        found = await asyncio.gather(*large, small, first)
        assert [shape for shape, _ in gate.batches] == [(1, 2), (2, 9), (2, 9), (1, 9), (4, 2), (2, 2)]
        assert [result.outputs["a"][0, 0] for result in found] == [0, 18, 36, 54, 72, 28, 0]
        full = await batcher(max_delay=60).infer(ones(1, 2), ["a"], soon(), 2)  # waits for nobody
        assert full.batch == 2

    asyncio.run(main())


@pytest.mark.parametrize("runs", [1, 3])
def test_each_request_gets_its_rows_under_shuffled_concurrency(runs):
    async def main():
        made = batcher(max_batch=5, queue=300, runs=runs)
        draw = random.Random(0)

        async def ask(value):
            await asyncio.sleep(draw.random() / 50)
            count = draw.randint(1, 12)
            shape = draw.choice([(2,), (3,), (1, 2)])
            images = np.arange(count, dtype=np.float32).reshape(count, *[1] * len(shape)) + ones(value, count, shape)
            names = draw.choice([["a"], ["b"], ["a", "b"]])
            result = await made.infer(images, names, soon())
            expected = 2 * images.reshape(count, -1).sum(axis=1, keepdims=True)
            assert list(result.outputs) == names
            assert all(np.array_equal(rows, expected) for rows in result.outputs.values())
            return result.batch

        sizes = await asyncio.gather(*(ask(100 * value) for value in range(300)))
        assert 1 < max(sizes) <= 5
        assert made.values("ehm_queue_images") == 0

    asyncio.run(main())


def test_what_waits_together_runs_together_and_other_shapes_and_types_apart():
    async def main():
        gate = Gate()
        made = batcher(gate)
        first = asyncio.ensure_future(made.infer(ones(0, 4), ["a"], soon()))
        await until(lambda: gate.batches)
        rest = [made.infer(ones(1), ["a"], soon()), made.infer(ones(2, 1, (3,)), ["a"], soon())]
        rest += [made.infer(ones(3, 2), ["b"], soon()), made.infer(ones(4).astype(np.uint8), ["a"], soon())]
        tasks = [asyncio.ensure_future(each) for each in rest]
        await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.gather(first, *tasks)
        assert gate.batches == [
            ((4, 2), ("a",)),
            ((3, 2), ("a", "b")),
            ((1, 3), ("a",)),
            ((1, 2), ("a",)),
        ]
        assert made.values("ehm_batch_images_sum") == 9
        assert made.values("ehm_batch_images_count") == 4

    asyncio.run(main())


def test_a_batch_takes_one_core_only_beside_others():
    async def main():
        alone = Gate()
        beside = Gate()
        made = batcher(alone, runs=2, max_batch=1, max_delay=0, run_beside=beside)
        first = asyncio.ensure_future(made.infer(ones(1), ["a"], soon()))
        await until(lambda: alone.batches)
        second = asyncio.ensure_future(made.infer(ones(2), ["a"], soon()))
        await until(lambda: beside.batches)
        alone.open.set()
        beside.open.set()
        found = await asyncio.gather(first, second, made.infer(ones(3), ["a"], soon()))
        assert [result.outputs["a"][0, 0] for result in found] == [4, 8, 12]
        await until(lambda: made.run_now(ones(4), ["a"], asyncio.get_running_loop()))
        # the third may have begun beside the second, or after it
        assert (len(alone.batches), len(beside.batches)) in {(3, 1), (2, 2)}
        assert alone.batches[-1] == ((1, 2), ("a",))

    asyncio.run(main())


def test_a_request_waits_for_others_while_nothing_runs():
    async def main():
        made = batcher(max_batch=2, max_delay=1000)
        first = asyncio.ensure_future(made.infer(ones(1), ["a"], soon(5)))
        await asyncio.sleep(0.02)
        second = await made.infer(ones(2), ["a"], soon(5))
        assert ((await first).batch, second.batch) == (2, 2)

    asyncio.run(main())


def test_a_full_batch_does_not_wait_and_a_large_request_is_split_and_joined():
    async def main():
        made = batcher(max_delay=1000)
        images = np.arange(16, dtype=np.float32).reshape(8, 2)
        result = await made.infer(images, ["a"], soon(5))
        assert result.outputs["a"].tolist() == (2 * images.sum(axis=1, keepdims=True)).tolist()
        assert result.batch == 4

    asyncio.run(main())


def test_the_deadline_and_the_full_queue_are_named():
    async def main():
        gate = Gate()
        made = batcher(gate, queue=2)
        running = asyncio.ensure_future(made.infer(ones(1), ["a"], soon()))
        await until(lambda: gate.batches)
        with pytest.raises(RequestError, match="deadline") as late:
            await made.infer(ones(2), ["a"], soon(0.02))
        waiting = asyncio.ensure_future(made.infer(ones(3), ["a"], soon()))
        await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="queue of 2 requests is full") as full:
            await made.infer(ones(4), ["a"], soon())
        assert (late.value.status, full.value.status) == (504, 429)
        gate.open.set()
        assert [(await each).outputs["a"].item() for each in (running, waiting)] == [4, 12]
        assert [shape for shape, _ in gate.batches] == [(1, 2), (1, 2)]  # neither of the refused ones ran
        with pytest.raises(RequestError, match="deadline"):
            await made.infer(ones(5), ["a"], soon(-1))

    asyncio.run(main())


def test_a_cancelled_request_leaves_the_queue():
    async def main():
        gate = Gate()
        made = batcher(gate, queue=2)
        running = asyncio.ensure_future(made.infer(ones(1), ["a"], soon()))
        await until(lambda: gate.batches)
        gone = asyncio.ensure_future(made.infer(ones(2, 9), ["a"], soon()))
        await until(lambda: made.values("ehm_queue_images") == 9)
        gone.cancel()
        await asyncio.wait([gone])
        assert made.values("ehm_queue_images") == 0
        after = asyncio.ensure_future(made.infer(ones(3), ["a"], soon()))
        running.cancel()
        gate.open.set()
        assert (await after).outputs["a"].item() == 12
        assert [shape for shape, _ in gate.batches] == [(1, 2), (1, 2)]

    asyncio.run(main())


def test_a_failing_batch_fails_its_requests_and_no_others():
    def picky(images, names):
        if images.shape[1] == 3:
            raise RuntimeError("no\nthrees")
        return double(images, names)

    async def main():
        made = batcher(picky)
        asked = [made.infer(ones(value, 1, (2 + value % 2,)), ["a"], soon()) for value in range(8)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        for value, result in enumerate(results):
            if value % 2:
                assert (result.status, str(result)) == (500, "the model failed on this batch: no threes")
            else:
                assert result.outputs["a"].item() == 4 * value
        with pytest.raises(RequestError, match="failed"):
            await made.infer(ones(1, 9, (3,)), ["a"], soon())
        assert made.values("ehm_queue_images") == 0

    asyncio.run(main())


def test_requests_that_together_find_no_memory_fail_and_leave_nobody_waiting():
    async def main():
        made = batcher()
        endless = np.broadcast_to(np.float32(0), (1, 2**50))  # takes no memory until it is copied
        results = await asyncio.gather(*(made.infer(endless, ["a"], soon()) for _ in range(2)), return_exceptions=True)
        for result in results:
            assert result.status == 500
            assert "the model failed on this batch: Unable to allocate" in str(result)
        assert (await made.infer(ones(1), ["a"], soon())).outputs["a"].item() == 4

    asyncio.run(main())


def test_a_model_that_loses_rows_is_not_believed():
    async def main():
        made = batcher(lambda images, names: dict.fromkeys(names, images[:1]))
        with pytest.raises(RequestError, match="a has 1 rows for 2 images"):
            await made.infer(ones(1, 2), ["a"], soon())

    asyncio.run(main())


def test_as_many_batches_run_at_once_as_there_may_be():
    """Each run waits until another one is under way, which one after the other never are."""
    together = threading.Barrier(2)
    under_way = []

    def run(images, names):
        under_way.append(images)
        assert len(under_way) <= 2
        together.wait(20)
        under_way.pop()
        return double(images, names)

    async def main():
        made = batcher(run, runs=2, max_batch=1, max_delay=0)
        found = await asyncio.gather(*(made.infer(ones(i), ["a"], soon()) for i in range(8)))
        assert [result.outputs["a"][0, 0] for result in found] == [4 * i for i in range(8)]
        large = await made.infer(np.arange(12, dtype=np.float32).reshape(6, 2), ["a"], soon())
        assert large.outputs["a"][:, 0].tolist() == [2, 10, 18, 26, 34, 42]

    asyncio.run(main())


def test_without_a_delay_a_request_runs_at_once():
    async def main():
        gate = Gate()
        made = batcher(gate, max_delay=0, runs=2)
        waiting = [asyncio.ensure_future(made.infer(ones(0), ["a"], soon()))]
        await until(lambda: len(gate.batches) == 1)
        waiting.append(asyncio.ensure_future(made.infer(ones(1), ["a"], soon())))
        await until(lambda: len(gate.batches) == 2)
        waiting += [asyncio.ensure_future(made.infer(ones(i), ["a"], soon())) for i in (2, 3)]
        await until(lambda: made.values("ehm_queue_images") == 2)  # while both are under way, the next batch gathers
        gate.open.set()
        assert [result.batch for result in await asyncio.gather(*waiting)] == [1, 1, 2, 2]

    asyncio.run(main())


def test_a_lone_request_runs_in_its_own_thread():
    async def main():
        threads = []

        def run(images, names):
            threads.append(threading.current_thread())
            return double(images, names)

        made = batcher(run, max_delay=0)
        result = made.run_now(ones(3), ["a"], asyncio.get_running_loop())
        assert (result.outputs["a"].tolist(), result.batch) == ([[12]], 1)
        assert threads == [threading.current_thread()]
        assert made.values("ehm_batch_images_count") == 1
        assert batcher(run, max_delay=0.01).run_now(ones(3), ["a"], asyncio.get_running_loop()) is None

    asyncio.run(main())


def test_it_does_so_only_while_the_model_is_idle_and_leaves_nobody_waiting():
    async def main():
        gate = Gate()
        made = batcher(gate, max_delay=0)
        loop = asyncio.get_running_loop()
        alone = loop.run_in_executor(None, made.run_now, ones(1), ["a"], loop)
        await until(lambda: gate.batches)
        other = asyncio.ensure_future(made.infer(ones(2), ["a"], soon()))
        await until(lambda: made.values("ehm_queue_images") == 1)
        assert made.run_now(ones(3), ["a"], loop) is None
        gate.open.set()
        assert (await alone).outputs["a"].tolist() == [[4]]
        assert (await other).outputs["a"].tolist() == [[8]]
        assert len(gate.batches) == 2

    asyncio.run(main())


def test_a_model_that_fails_in_it_is_named_and_goes_on():
    async def main():
        def run(images, names):
            if images.max() > 5:
                raise ValueError("too\nlarge")
            return double(images, names)

        made = batcher(run, max_delay=0)
        loop = asyncio.get_running_loop()
        with pytest.raises(RequestError, match="the model failed on this batch: too large") as refused:
            made.run_now(ones(9), ["a"], loop)
        assert refused.value.status == 500
        assert made.run_now(ones(1), ["a"], loop).batch == 1

    asyncio.run(main())

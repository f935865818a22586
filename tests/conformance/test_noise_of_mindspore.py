"""Random numbers that a MindSpore device hashes from keys: those of NumPy's arithmetic, and independent enough."""

import numpy as np
import pytest
from scipy import stats

ms = pytest.importorskip("mindspore", reason="MindSpore has an environment of its own")

from mindspore import Tensor  # noqa: E402

from ehm import backends  # noqa: E402
from ehm.backends.mindspore.engine.noise import draw_gumbel, make_keys  # noqa: E402

SHAPE = (4, 50, 100)


def hash_bits(values):
    """Hash uint32 by lowbias32, as its author gives it."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x7FEB352D)
    values = values ^ (values >> np.uint32(15))
    values = values * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))


@pytest.fixture(scope="module")
def draw():
    backends.get("mindspore:cpu")

    def draw_numbers(keys):
        return draw_gumbel(keys, SHAPE)

    graph = ms.jit(draw_numbers)
    return lambda *numbers: graph(Tensor(make_keys(list(numbers)))).asnumpy()


def test_numbers_are_hashes_of_their_places_mindspore(draw):
    keys = make_keys([7, 3]).view(np.uint32)
    bits = hash_bits(hash_bits(np.arange(np.prod(SHAPE), dtype=np.uint32) ^ keys[0]) ^ keys[1])
    fraction = ((bits >> np.uint32(9)).astype(np.float64) + 0.5) / 2**23
    expected = -np.log(-np.log1p(-fraction)).reshape(SHAPE)
    np.testing.assert_allclose(draw(7, 3), expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_gumbels_and_others_for_another_step_mindspore(draw):
    noise = draw(0, 0).ravel()
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    np.testing.assert_array_equal(noise, draw(0, 0).ravel())
    for other in (draw(0, 1), draw(1, 0)):
        assert abs(np.corrcoef(noise, other.ravel())[0, 1]) < 0.03
    for distance in (1, 100, 5000):  # the next place, the next code, the next image
        assert abs(np.corrcoef(noise[distance:], noise[:-distance])[0, 1]) < 0.03

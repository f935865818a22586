"""The rows of a table of biases for relative positions, against timm's."""

import numpy as np
import pytest
from timm.models.beit import gen_relative_position_index

from ehm.config.encoders import compute_relative_index


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 4), (14, 14)])
def test_the_index_is_timms(grid):
    np.testing.assert_array_equal(compute_relative_index(grid), gen_relative_position_index(grid).numpy())

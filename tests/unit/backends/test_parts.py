"""The number of parts in which a step passes through a device."""

from dataclasses import replace

import pytest
import torch

from ehm.backends.base import ALONE
from ehm.backends.torch.learners.pretraining import count_parts
from ehm.config import TrainConfig

TWO = replace(ALONE, size=2)


@pytest.mark.parametrize(
    ("device", "settings", "processes", "parts"),
    [
        ("cuda", {}, ALONE, 2),
        ("cpu", {}, ALONE, 1),
        # its masks are there before the step begins
        ("cuda", {"masking": "random"}, ALONE, 1),
        # or are made on the device, for the whole batch
        ("cuda", {"mask": {"build": "device"}}, ALONE, 1),
        # halves would be too small to keep it busy
        ("cuda", {}, TWO, 1),
        ("cuda", {"optim": {"batch_size": 1024}}, TWO, 2),
        ("cuda", {"optim": {"batch_size": 256, "accumulate": 4}}, ALONE, 4),
        ("cpu", {"optim": {"batch_size": 256, "accumulate": 4}}, ALONE, 4),
    ],
)
def test_an_accelerator_trains_on_one_part_while_masks_of_another_are_made(device, settings, processes, parts):
    values = {"optim": {"batch_size": 256}, **settings}
    assert count_parts(TrainConfig.model_validate(values), torch.device(device), processes) == parts

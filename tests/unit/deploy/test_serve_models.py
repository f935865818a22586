"""A served bundle whose files are copied one after the other, or that is unloaded while it is loaded again."""

import asyncio
import logging
import shutil
import time

import numpy as np
import pytest
from serving import means_bundle, picture

from ehm.deploy.serve.inference import models as serving_models
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.inference.models import Models, name_bundles
from ehm.deploy.serve.settings import Settings


@pytest.fixture
def folders(tmp_path):
    return means_bundle(tmp_path / "m"), means_bundle(tmp_path / "new", scale=2.0)


async def serving(folder):
    models = Models(name_bundles([folder]), Settings.from_arguments(), Metrics())
    await models.load_all()
    return models


def scale(models):
    """Return the factor of the model that is served."""
    images, means = picture(0)
    return models["m"].predictor.run(images)["features"][0, 0] / means[0, 0]


@pytest.mark.parametrize("order", [["manifest.json", "model.onnx"], ["model.onnx", "manifest.json"]])
def test_a_bundle_that_is_copied_file_by_file_is_served_in_the_end(folders, order):
    served, new = folders

    async def copy():
        models = await serving(served)
        for name in order:
            shutil.copyfile(new / name, served / name)
            for _ in range(2):
                await models.refresh()
        return scale(models)

    assert np.isclose(asyncio.run(copy()), 2)


def test_files_that_still_change_are_left_alone(folders, caplog):
    served, new = folders
    content = (new / "model.onnx").read_bytes()

    async def copy():
        models = await serving(served)
        shutil.copyfile(new / "manifest.json", served / "manifest.json")
        for end in range(0, len(content) + 60, 60):
            (served / "model.onnx").write_bytes(content[:end])
            await models.refresh()
        before = scale(models)
        await models.refresh()
        return before, scale(models)

    with caplog.at_level(logging.ERROR, "ehm.serve"):
        assert np.allclose(asyncio.run(copy()), (1, 2))
    assert not caplog.records


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(folders, monkeypatch):
    """Its manifest may be of the one, its network of the other."""
    served, _ = folders
    really = serving_models.open_served_model
    newer = [3.0]

    def replaced(*args):
        model = really(*args)
        if newer:
            means_bundle(served, scale=newer.pop())
        return model

    monkeypatch.setattr(serving_models, "open_served_model", replaced)
    assert np.isclose(scale(asyncio.run(serving(served))), 3)


def test_unloading_stays_although_a_reload_was_under_way(folders, monkeypatch):
    served, _ = folders
    really = serving_models.open_served_model

    async def race():
        models = await serving(served)
        monkeypatch.setattr(serving_models, "open_served_model", lambda *args: (time.sleep(0.2), really(*args))[1])
        reload = asyncio.ensure_future(models.refresh(every=True))
        await asyncio.sleep(0.05)
        models.unload("m")
        await reload
        gone = list(models)
        await models.load("m")
        return gone, list(models)

    assert asyncio.run(race()) == ([], ["m"])

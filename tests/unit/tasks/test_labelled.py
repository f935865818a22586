"""Labels for classification: what keeps folders from being classes is said."""

import pytest
from PIL import Image

from ehm.config import FinetuneConfig
from ehm.errors import DataError
from ehm.tasks.classification.task import Classification


def write(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / file)
    return FinetuneConfig.model_validate({"data": {"source": str(root)}})


def test_one_folder_is_named(tmp_path):
    config = write(tmp_path, "cat/0.png", "cat/1.png")
    with pytest.raises(DataError, match=f"has no labels: all of its images lie in one folder, {tmp_path}/cat; put"):
        Classification.split_images(config)


def test_an_image_beside_the_class_folders_is_named(tmp_path):
    config = write(tmp_path, "cat/0.png", "dog/0.png", "cover.png")
    with pytest.raises(DataError, match=r"has no labels: cover\.png lies beside the folder cat; move what has"):
        Classification.split_images(config)
    config = write(tmp_path, "logo.png")
    with pytest.raises(DataError, match=r"has no labels: cover\.png and 1 more images lie beside the folder cat; move"):
        Classification.split_images(config)


def test_so_it_is_in_a_training_part(tmp_path):
    config = write(tmp_path, "train/cat/0.png", "train/0.png", "val/cat/0.png")
    with pytest.raises(DataError, match=r"has no labels: 0\.png lies beside the folder cat"):
        Classification.split_images(config)

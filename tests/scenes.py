"""Photographed objects on other photographs, with their boxes and masks in COCO's format.

Cat's faces and cups (of scikit-image's photographs) lie on solar cells (of elpv-dataset) and on gravel.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as tools
from skimage import data

from ehm.config import DataConfig
from ehm.data import open_source

CLASSES = ("cat", "cup")


def write_scenes(root: Path, images: int, seed: int, name: str, side: int = 96) -> None:
    """``root/annotations/instances_{name}.json`` and ``root/{name}/``: pictures of different sizes around ``side``."""
    rng, annotations, entries = np.random.default_rng(seed), [], []
    (root / name).mkdir(parents=True)
    for index in range(images):
        picture, objects = scene(rng, side)
        file = f"{index:03d}.jpg"
        Image.fromarray(picture).save(root / name / file, quality=95)
        height, width = picture.shape[:2]
        entries.append({"id": 100 + index, "file_name": file, "height": height, "width": width})
        for label, mask in objects:
            annotations.append(annotate(len(annotations), 100 + index, label, mask))
    categories = [{"id": 3 + 4 * number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    file = root / "annotations" / f"instances_{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def annotate(number, image, label, mask):
    """An object as COCO's files have it; masks are run-length codes, as text."""
    code = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": 3 + 4 * label,
        "bbox": tools.toBbox(code).tolist(),
        "area": float(tools.area(code)),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
    }


def scene(rng, side):
    """A picture, and the class and mask of each of its objects, which do not overlap much."""
    height, width = side, side + 8 * int(rng.integers(-2, 3))
    picture = ground(rng, height, width)
    free, objects = np.ones((height, width), bool), []
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(2))
        cut, mask = resized(*things()[label][rng.integers(len(things()[label]))], int(side * rng.uniform(0.3, 0.48)))
        top, left = rng.integers(0, np.subtract((height, width), mask.shape) + 1)
        place = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        if not free[place].all():
            continue
        free[place] = False
        picture[place][mask] = cut[mask]
        whole = np.zeros((height, width), bool)
        whole[place] = mask
        objects.append((label, whole))
    return picture, objects


@cache
def things():
    """Cut-outs and masks of each class: ellipses around a cat's face, and around a cup."""
    return [
        [(cut, rows**2 + columns**2 < 1)]
        for cut in (data.chelsea()[10:250, 80:340], data.coffee()[50:340, 150:470])
        for rows, columns in [np.ogrid[-1 : 1 : cut.shape[0] * 1j, -1 : 1 : cut.shape[1] * 1j]]
    ]


@cache
def grounds():
    source = open_source(DataConfig())
    cells = [np.asarray(source.load(index)) for index in range(0, 2600, 130)]
    return [*cells, np.repeat(data.gravel()[:300, :300, None], 3, 2)]


def ground(rng, height, width):
    whole = grounds()[rng.integers(len(grounds()))]
    top, left = rng.integers(0, whole.shape[0] - height), rng.integers(0, whole.shape[1] - width)
    return whole[top : top + height, left : left + width].copy()


def resized(cut, mask, side):
    scale = side / max(mask.shape)
    size = tuple(round(length * scale) for length in mask.shape[::-1])
    return (
        np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.BICUBIC)),
        np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)),
    )

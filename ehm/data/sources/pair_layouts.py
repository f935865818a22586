"""Find the folders of images and of their masks in a data set for segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ehm.data.sources.class_names import ADE20K_TABLE, CLASSES_FILE
from ehm.data.sources.image_files import list_image_files
from ehm.data.sources.masks import MASK_SUFFIXES
from ehm.data.sources.parts import MASK_FOLDERS, PARTS, Part, list_visible_folders, match_parts, refuse_address
from ehm.errors import DataError

__all__ = ["PairFolders", "find_pair_folders", "is_mask_file", "recognise_pairs"]

ADE20K = "ADEChallengeData2016"
_ADE20K_IMAGE = "ADE_train_"


@dataclass(frozen=True)
class PairFolders:
    """The folders of images and of masks below ``root``, (images, masks) of each part; "train" if it is not divided.

    ``names`` are the folders' names of the parts, none if it is not divided. ``without_masks`` are folders of images
    beside those that have no folder of masks.
    """

    root: Path
    folders: Mapping[Part, tuple[Path, Path]]
    names: Mapping[Part, str]
    without_masks: tuple[str, ...] = ()


def recognise_pairs(source: str, layout: str) -> tuple[Path, bool]:
    """Return the folder that holds images/ or the parts, and whether its masks are numbered as ADE20K's are.

    With ``layout`` "auto" that is so if images/training has ADE20K's file names, or its table or its name lies there:
    the names of folders alone say nothing. Raises DataError if there is no such folder, or if there is a classes.txt
    besides.
    """
    refuse_address(source)
    root = Path(source).expanduser()
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise DataError(f"data.source {source}: {wrong}")
    official = _find_training_folders(root)
    if layout == "ade20k" and official is None:
        raise DataError(f"data.source {source}: not ADE20K; looked for images/training and annotations/training")
    if layout == "pairs" or official is None:
        return root, False
    if layout == "ade20k":
        return official, True
    sign = _find_sign_of_ade20k(official)
    if sign is None:
        return root, False
    if (official / CLASSES_FILE).is_file():
        raise DataError(
            f"data.source {source}: fits two layouts: ade20k ({sign}) and pairs ({CLASSES_FILE}); choose with "
            "data.layout=ade20k or data.layout=pairs"
        )
    return official, True


def _find_training_folders(root: Path) -> Path | None:
    for place in (root, root / ADE20K):
        if (place / "images" / "training").is_dir() and (place / "annotations" / "training").is_dir():
            return place
    return None


def _find_sign_of_ade20k(place: Path) -> str | None:
    """Return what only ADE20K has, in words."""
    if place.resolve().name == ADE20K:
        return f"a folder {ADE20K}"
    if (place / ADE20K_TABLE).is_file():
        return ADE20K_TABLE
    first = next(list_image_files(place / "images" / "training"), "")
    return f"images such as {first}" if first.startswith(_ADE20K_IMAGE) else None


def find_pair_folders(source: str, root: Path) -> PairFolders:
    """Find the folders of images and masks in ``root``, as the head of :mod:`ehm.data.sources.pairs` shows them.

    Raises DataError if there are none, if two arrangements or two folders of masks are possible, or if there is no part
    to train on.
    """
    possible: list[PairFolders] = []
    for masks_name in MASK_FOLDERS:
        possible += _find_arrangements(source, root, masks_name)
    # an arrangement without a single mask counts only if there is no other, to report what it lacks
    found = [each for each in possible if any(map(_holds_masks, each.folders.values()))] or possible[:1]
    if not found:
        names = ", ".join(f"{name}/" for name in MASK_FOLDERS)
        raise DataError(f"data.source {source}: no folder images/ with {names} beside it")
    if len(found) > 1:
        places = []
        for images, masks_folder in map(_take_first_folders, found):
            places.append(f"{images.relative_to(root)} with {masks_folder.relative_to(root)}")
        raise DataError(
            f"data.source {source}: fits two arrangements of images and masks: {places[0]}, and {places[1]}; move one "
            "of them elsewhere"
        )
    if "train" not in found[0].folders:
        names = ", ".join(f"{name}/" for name in found[0].names.values())
        raise DataError(f"data.source {source}: has {names} and no part to train on (train/ or training/) with masks")
    return found[0]


def _take_first_folders(found: PairFolders) -> tuple[Path, Path]:
    return next(iter(found.folders.values()))


def _find_arrangements(source: str, root: Path, masks: str) -> list[PairFolders]:
    """Return the arrangements with a folder of masks of this name: parts in both folders, both in parts, undivided."""
    found = []
    images_parts = match_parts(source, list_visible_folders(root / "images"))
    masks_parts = match_parts(source, list_visible_folders(root / masks))
    folders: dict[Part, tuple[Path, Path]] = {}
    for part in PARTS:
        if part in images_parts and part in masks_parts:
            folders[part] = (root / "images" / images_parts[part], root / masks / masks_parts[part])
    if folders:
        others = [f"images/{name}" for name in list_visible_folders(root / "images")]
        found.append(_make_pair_folders(root, folders, images_parts, others))
    outer_parts = match_parts(source, list_visible_folders(root))
    complete: dict[Part, tuple[Path, Path]] = {}
    others = []
    for part, name in outer_parts.items():
        images_folder = root / name / "images"
        if images_folder.is_dir():
            others.append(f"{name}/images")
            if (root / name / masks).is_dir():
                complete[part] = (images_folder, root / name / masks)
    if complete:
        found.append(_make_pair_folders(root, complete, outer_parts, others))
    if not found and (root / "images").is_dir() and (root / masks).is_dir():
        found.append(PairFolders(root, {"train": (root / "images", root / masks)}, {}))
    return found


def _make_pair_folders(
    root: Path, folders: Mapping[Part, tuple[Path, Path]], names: Mapping[Part, str], images: list[str]
) -> PairFolders:
    used = {str(pair[0].relative_to(root)) for pair in folders.values()}
    without_masks = tuple(name for name in images if name not in used)
    return PairFolders(root, folders, {part: names[part] for part in folders}, without_masks)


def _holds_masks(pair: tuple[Path, Path]) -> bool:
    return any(map(is_mask_file, list_image_files(pair[1])))


def is_mask_file(file: str) -> bool:
    """Return whether a file of this name can be a mask."""
    return Path(file).suffix.lower() in MASK_SUFFIXES

"""``ehm compare``: how encoders are measured side by side, and the file of a study that trains them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ehm.config.data import DataConfig
from ehm.config.section import Section
from ehm.config.sources import Layout, TableColumns
from ehm.config.values import ClassName, Count, ImageSize, PixelRange, Positive

__all__ = ["ArmConfig", "FigureName", "MeasureConfig", "ProbeName", "StudyConfig"]

ProbeName = Literal["knn", "linear", "finetune"]
FigureName = Literal["top1", "balanced_accuracy", "auc"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MeasureConfig(Section):
    """The images that encoders are measured on, and how they are measured.

    If the source has a validation part, its images are measured, and probes and fine-tuning learn from the training
    part. Otherwise the images are divided ``repeats`` times into stratified ``folds``, and in each division every image
    is measured once.
    """

    name: str = Field("", description="Name of this measurement if a study has several; its figures begin with it.")
    source: str = Field("elpv", description="The labelled images, as for data.source (docs/data.md).")
    layout: Layout = Field("auto", description="How the source is laid out on disk, as for data.layout.")
    image_folder: str | None = Field(
        None, description="Folder that the paths of a table start from, as for data.images; null takes the table's own."
    )
    columns: TableColumns = TableColumns()
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = Field(
        None, description="Names of the classes whose images are read; null takes all."
    )
    range: PixelRange | None = Field(
        None, description="The values that are black and white in images of more than 8 bits, as for data.range."
    )
    image_size: ImageSize | None = Field(
        None, description="Height and width in pixels that encoders see; null takes those of each encoder's weights."
    )
    images: Positive | None = Field(
        10_000,
        description="Largest number of images to train probes on, or of all images if there are folds, drawn with the "
        "same share of each class; null takes all.",
    )
    test_images: Positive | None = Field(
        None, description="Largest number of images of a validation part to measure on; null takes all."
    )
    probes: Annotated[tuple[ProbeName, ...], Field(min_length=1)] = Field(
        ("knn", "linear"), description="The ways to measure: knn, linear and finetune."
    )
    figure: Literal["auto", "top1", "balanced_accuracy", "auc"] = Field(
        "auto", description="The figure that encoders are compared by; auto takes auc for two classes, else top1."
    )
    neighbours: Positive = Field(20, description="Number of nearest neighbours that vote.")
    folds: Annotated[int, Field(ge=2)] = Field(5, description="Number of folds, each of which is held out once.")
    repeats: Positive = Field(3, description="Number of divisions into folds, each drawn anew.")
    recipe: str = Field("finetune/short", description="The configuration of fine-tuning, a file or a shipped name.")
    finetune_folds: Positive | None = Field(
        None, description="Number of folds of the first division to fine-tune on; null takes all of them."
    )
    scratch_seeds: Positive = Field(
        3, description="Number of random encoders that scratch is the mean of; fine-tuning takes the first."
    )
    workers: Count | None = Field(
        None, description="Number of processes that read images; null takes 2, or 0 beside other runs of a study."
    )

    @model_validator(mode="after")
    def _check_source(self) -> MeasureConfig:
        _ = self.data  # which raises ValueError for settings that do not fit together
        if len(set(self.probes)) < len(self.probes):
            raise ValueError(f"probes {', '.join(self.probes)}: one is named twice")
        return self

    @property
    def data(self) -> DataConfig:
        """The section ``data`` that opens its images."""
        keys = {key: getattr(self, key) for key in ("source", "layout", "columns", "classes", "range")}
        return DataConfig.model_validate({**keys, "images": self.image_folder})


def _list_one(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ArmConfig(Section):
    """An arm of a study: pretraining runs that differ by their seed alone."""

    title: str | None = Field(None, description="What tables call it; null takes its name.")
    overrides: tuple[str, ...] = Field((), description="What is set besides the overrides of all arms, as KEY=VALUE.")
    against: Annotated[tuple[str, ...], BeforeValidator(_list_one)] = Field(
        (), description="The arms that it is compared with, one name or a list; empty for the first arm."
    )
    start: str | None = Field(
        None, description="The arm whose encoder of the same seed it begins with; null begins as overrides say."
    )
    seeds: tuple[Count, ...] | None = Field(None, description="Its seeds; null takes those of the study.")


def _expand_arms(value: Any) -> Any:
    """Let a list stand for an arm that has overrides only."""
    if not isinstance(value, Mapping):
        raise ValueError("should be a section of names and arms")
    arms = {}
    for name, arm in value.items():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"the arm {name!r} gives folders their name: letters, digits, dots, - and _ only")
        arms[str(name)] = {"overrides": arm} if isinstance(arm, (list, tuple)) else arm
    return arms


def _list_sections(value: Any) -> Any:
    return (value,) if isinstance(value, (Mapping, MeasureConfig)) else value


def _check_unique(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(value)) < len(value):
        raise ValueError("one seed stands there twice")
    return value


class StudyConfig(Section):
    """Arms over seeds, trained from one base and measured alike."""

    base: str | None = Field(
        None,
        description="The configuration of all arms, a file or a shipped name; null takes what ehm train takes without "
        "--config.",
    )
    overrides: tuple[str, ...] = Field((), description="What is set for all arms, as KEY=VALUE.")
    arms: Annotated[dict[str, ArmConfig], BeforeValidator(_expand_arms)] = Field(
        {}, description="The arms by name, each a list of overrides or a section; the first is compared with."
    )
    seeds: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_check_unique)] = Field(
        (0,), description="The seeds that each arm is trained with."
    )
    measure: Annotated[tuple[MeasureConfig, ...], BeforeValidator(_list_sections)] = Field(
        (), description="How the encoders are measured, one section or a list of sections with names."
    )

    @model_validator(mode="after")
    def _check_together(self) -> StudyConfig:
        for name, arm in self.arms.items():
            for other in (*arm.against, *([arm.start] if arm.start else [])):
                if other not in self.arms or other == name:
                    raise ValueError(f"arms.{name}: there is no other arm {other}; the arms are {', '.join(self.arms)}")
            self._check_starts(name)
        names = [measure.name for measure in self.measure]
        if len(set(names)) < len(names):
            raise ValueError("measure: give each of several measurements a name of its own")
        return self

    def _check_starts(self, name: str) -> None:
        """Raise ValueError if an arm would wait for itself."""
        seen = [name]
        while (start := self.arms[seen[-1]].start) is not None and start in self.arms:
            if start in seen:
                raise ValueError(f"arms.{name}: starts from itself ({' from '.join([*seen, start])})")
            seen.append(start)

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Return the seeds that ``arm`` is trained with."""
        own = self.arms[arm].seeds
        return self.seeds if own is None else own

    def opponents_of(self, arm: str) -> tuple[str, ...]:
        """Return the arms that ``arm`` is compared with: none for the first, if it names none."""
        named = self.arms[arm].against
        first = next(iter(self.arms))
        return named or tuple(name for name in (first,) if name != arm)

    def title_of(self, arm: str) -> str:
        """Return what tables call ``arm``."""
        return self.arms[arm].title or arm

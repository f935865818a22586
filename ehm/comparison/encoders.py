"""Measure encoders on the same splits of the same images, and keep their features and answers.

OUT/features/KEY.safetensors    features of all images by one encoder
OUT/answers/KEY.safetensors     answers of one probe of one encoder, for the test images of each split so far
OUT/finetune/                   the fine-tuning in progress

A key is a hash of everything that its file depends on, including the content of the weights. Whatever changes, the
key changes too, so that a file is never out of date.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ehm.backends.base import Backend
from ehm.comparison.answers import Answers, load_answers, save_answers
from ehm.comparison.candidates import Candidate, Member
from ehm.comparison.features import (
    ImageFeatures,
    extract_features,
    has_features,
    identify_images,
    load_features,
    make_key,
    save_features,
)
from ehm.comparison.finetuning import finetune_on_split
from ehm.comparison.images import LabelledImages, Split
from ehm.comparison.measuring import choose_finetuning_splits, probe_split
from ehm.comparison.meter import Meter
from ehm.config import FinetuneConfig, MeasureConfig, ModelSource, load_config
from ehm.config.comparison import ProbeName
from ehm.config.data import refuse_other_images

__all__ = ["MemberAnswers", "measure_candidates"]

MemberAnswers = list[list[Answers]]
"""The answers of each member of a candidate for each split."""
_WORKERS = 2
"""Processes that decode images if the settings do not say."""
_FORMAT = 1
"""The version of features and answers: raise it when they are computed in another way, and old files are ignored."""
_SEED = 0
"""The seed of fine-tuning, which is the same for all encoders."""
_FEATURES = "features"
"""The kind of the meter's steps that compute the features of all images by one encoder; other kinds are probes."""


@dataclass(frozen=True)
class _Bench:
    """The images, settings and device that all encoders of a comparison are measured with."""

    images: LabelledImages
    image_facts: dict[str, Any]
    measure: MeasureConfig
    backend: Backend
    device: str
    out: Path

    @property
    def workers(self) -> int:
        return _WORKERS if self.measure.workers is None else self.measure.workers

    def splits_of(self, probe: ProbeName) -> tuple[Split, ...]:
        """Return the splits that ``probe`` measures."""
        if probe == "finetune":
            return choose_finetuning_splits(self.measure, self.images)
        return self.images.splits


def measure_candidates(
    candidates: list[Candidate],
    images: LabelledImages,
    measure: MeasureConfig,
    backend: Backend,
    device: str,
    out: Path,
) -> dict[str, dict[ProbeName, MemberAnswers]]:
    """Return the answers of every candidate by its name, for each probe, member and split.

    Answers and features that ``out`` already holds are reused. Shows the progress and the time that is left.
    """
    facts = identify_images(images, measure.range, measure.workers or _WORKERS)
    bench = _Bench(images, facts, measure, backend, device, out)
    answers: dict[str, dict[ProbeName, MemberAnswers]] = {}
    with Meter(_count_steps(candidates, bench)) as meter:
        for candidate in candidates:
            answers[candidate.name] = {}
            for probe in measure.probes:
                answers[candidate.name][probe] = [
                    _measure_member(member, candidate.name, probe, bench, meter)
                    for member in _choose_members(candidate, probe)
                ]
    return answers


def _choose_members(candidate: Candidate, probe: ProbeName) -> tuple[Member, ...]:
    """Return the members that ``probe`` measures: all of them, but only one by fine-tuning, which takes long."""
    return candidate.members[:1] if probe == "finetune" else candidate.members


def _count_steps(candidates: list[Candidate], bench: _Bench) -> dict[str, int]:
    """Return how many splits each probe has yet to measure, and how many encoders have yet to compute features.

    Encoders of the same weights share their files, so they count once.
    """
    counts: dict[str, int] = dict.fromkeys([_FEATURES, *bench.measure.probes], 0)
    counted: set[Path] = set()
    for probe in bench.measure.probes:
        members = itertools.chain.from_iterable(_choose_members(candidate, probe) for candidate in candidates)
        for member in members:
            answers = _locate_answers(member, probe, bench)
            if answers in counted:
                continue
            counted.add(answers)
            left = len(bench.splits_of(probe)) - len(_load_kept_answers(answers, probe, bench))
            counts[probe] += left
            features = _locate_features(member, bench)
            if left and probe != "finetune" and features not in counted and not has_features(features):
                counted.add(features)
                counts[_FEATURES] += 1
    return counts


def _measure_member(member: Member, name: str, probe: ProbeName, bench: _Bench, meter: Meter) -> list[Answers]:
    """Return the answers of one encoder for each split: the kept ones, and for the other splits new ones."""
    path = _locate_answers(member, probe, bench)
    splits = bench.splits_of(probe)
    answers = _load_kept_answers(path, probe, bench)
    if len(answers) == len(splits):
        return answers
    answer: Callable[[Split], Answers]
    if probe == "finetune":
        answer = partial(_answer_by_finetuning, member, bench)
    else:
        answer = partial(_answer_by_probe, probe, _take_features(member, name, bench, meter), bench)
    for number in range(len(answers), len(splits)):
        meter.show(f"{name}: {probe}, split {number + 1} of {len(splits)}")
        answers.append(answer(splits[number]))
        save_answers(path, answers)  # after every split, so that an interruption loses one at most
        meter.advance(probe)
    return answers


def _load_kept_answers(path: Path, probe: ProbeName, bench: _Bench) -> list[Answers]:
    """Load the answers for the splits of ``probe`` that this command or an earlier one has measured."""
    return load_answers(path)[: len(bench.splits_of(probe))]


def _locate_answers(member: Member, probe: ProbeName, bench: _Bench) -> Path:
    """Return the file of the answers of one encoder by ``probe``."""
    facts = {**bench.image_facts, "weights": member.weights, **_describe_probe(probe, bench)}
    return bench.out / "answers" / f"{make_key(facts)}.safetensors"


def _locate_features(member: Member, bench: _Bench) -> Path:
    """Return the file of the features of all images by one encoder."""
    facts = {
        **bench.image_facts,
        "format": _FORMAT,
        "weights": member.weights,
        "image_size": bench.measure.image_size,
    }
    return bench.out / "features" / f"{make_key(facts)}.safetensors"


def _describe_probe(probe: ProbeName, bench: _Bench) -> dict[str, Any]:
    """Return everything, besides images and weights, that the answers of a probe depend on."""
    measure = bench.measure
    facts: dict[str, Any] = {"format": _FORMAT, "probe": probe, "image_size": measure.image_size}
    if not bench.images.is_divided:
        # without measure.repeats: the splits of the first division are the same, however many divisions follow
        facts["folds"] = measure.folds
    if probe == "knn":
        facts["neighbours"] = measure.neighbours
    if probe == "finetune":
        # by content, because the file of a recipe may be edited
        facts["recipe"] = load_config(FinetuneConfig, measure.recipe).model_dump(mode="json")
    return facts


def _take_features(member: Member, name: str, bench: _Bench, meter: Meter) -> ImageFeatures:
    """Return the features of all images by one encoder: from its file if there is one, else computed and kept."""
    path = _locate_features(member, bench)
    features = load_features(path)
    if features is not None:
        return features
    meter.show(f"{name}: loading")
    encoder = bench.backend.create_encoder(ModelSource(init=member.init, image_size=bench.measure.image_size))
    refuse_other_images("compare", member.init, encoder.inputs.pixels)
    total = len(bench.images.labels)
    features = extract_features(
        encoder,
        bench.images,
        bench.workers,
        lambda done: meter.show(f"{name}: features of {done:,} of {total:,} images"),
    )
    save_features(path, features)
    meter.advance(_FEATURES)
    return features


def _answer_by_probe(probe: ProbeName, features: ImageFeatures, bench: _Bench, split: Split) -> Answers:
    return probe_split(probe, features, bench.images, split, bench.measure)


def _answer_by_finetuning(member: Member, bench: _Bench, split: Split) -> Answers:
    folder = bench.out / "finetune"
    return finetune_on_split(member.init, bench.images, split, bench.measure, bench.device, _SEED, folder)

"""The table of the figures that runs log: a row for each chart, with its curves and their meaning.

Code that logs a new figure should have a row here; figures without one are drawn in charts of their own at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ehm.report.numbers import BYTES, PLAIN, SHARE, Unit

__all__ = ["GROUPS", "KNOWN_FIGURES", "ROWS_BY_KEY", "FigureRow"]

GROUPS: Mapping[str, str] = {
    "measured": "On held-out images",
    "features": "How good the features are",
    "learning": "Learning",
    "tokens": "Visual tokens",
    "masks": "Masks and trees",
    "speed": "Speed and memory",
    "other": "Other figures",
}
"""The headings of the groups, in the order of the page."""


@dataclass(frozen=True)
class FigureRow:
    """A chart: the ``keys`` of its curves in metrics.jsonl with their labels, and its ``meaning`` in plain sentences.

    With ``from_zero`` the vertical axis begins at 0.
    """

    group: str
    title: str
    keys: Mapping[str, str]
    meaning: str
    unit: Unit = PLAIN
    from_zero: bool = False


def _with_average(key: str) -> dict[str, str]:
    """Return the keys of a figure of the model and of its moving average, with their labels."""
    return {key: "online", f"{key}_ema": "average"}


KNOWN_FIGURES: tuple[FigureRow, ...] = (
    FigureRow(
        "measured",
        "Accuracy",
        {"balanced_accuracy": "balanced", "top1": "top-1", "auc": "AUC"},
        "Top-1 is the share of images that are classed right. Balanced accuracy is the mean over the classes, so that "
        "rare ones count as much as common ones. An AUC of 50% is guessing.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Several labels",
        {"mean_ap": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1"},
        "mAP is the mean over the labels of their average precision, which depends on no threshold. F1 is that of the "
        "best threshold of each label: its mean over the labels (macro), and that of all answers together (micro).",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Segmentation",
        {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"},
        "mIoU is the overlap of prediction and truth, mean over the classes; mAcc the share of a class's pixels that "
        "is found; aAcc the share of all pixels that are right, which common classes dominate.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Boxes",
        {"box_ap": "AP", "box_ap50": "AP50", "box_ap75": "AP75"},
        "Average precision as COCO counts it. AP50 accepts a box that overlaps the true one by half, AP75 by three "
        "quarters; AP is the mean over ten such bounds.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Masks of objects",
        {"mask_ap": "AP", "mask_ap50": "AP50", "mask_ap75": "AP75"},
        "The same figures for the outlines of objects instead of boxes.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Mean average precision",
        {"map": "mAP", "map_medium": "medium", "map_hard": "hard", "map_easy": "easy"},
        "100% if every image that belongs to a query comes before all others.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Answers",
        {
            "accuracy": "accuracy",
            "accuracy_exact": "official rule",
            "accuracy_blank": "blank images",
            "accuracy_commonest": "commonest answers",
        },
        "The mean score of the answers, and two scores without images: of the same model on blank images, and of "
        "always giving the commonest answers. Only a score above both shows that the model uses the images.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Answers by kind of question",
        {
            "accuracy_yes_no": "yes/no",
            "accuracy_number": "number",
            "accuracy_other": "other",
            "accuracy_colour": "colour",
            "accuracy_shape": "shape",
        },
        "The mean score of each kind. Half of all yes/no questions are answered rightly by guessing.",
        SHARE,
    ),
    FigureRow(
        "measured",
        "Error of counts",
        {"count_error": "mean"},
        "How many objects a count is wrong by, in the mean.",
        from_zero=True,
    ),
    FigureRow(
        "features",
        "Nearest neighbours (k-NN)",
        _with_average("knn"),
        "The share of labelled images whose class their nearest neighbours in the encoder's features tell. It should "
        "rise; a fall that lasts is a bad sign. Compare it between runs on the same images only.",
        SHARE,
    ),
    FigureRow(
        "features",
        "Linear probe",
        _with_average("linear"),
        "The accuracy of a linear classifier on frozen features. It should rise, and is a better guide than k-NN to "
        "what fine-tuning will give.",
        SHARE,
    ),
    FigureRow(
        "features",
        "RankMe",
        _with_average("rankme"),
        "How many directions the features use, measured without labels (Garrido et al., 2023). It should rise and "
        "stay; a fall to a small part of its height means that the features collapse. Compare it between runs of one "
        "encoder only.",
        from_zero=True,
    ),
    FigureRow(
        "features",
        "Spread of features",
        _with_average("feature_spread"),
        "The distance of the features from their mean, as a share of their length. It should stay away from 0: there "
        "all images look the same to the encoder.",
        from_zero=True,
    ),
    FigureRow(
        "learning",
        "Loss",
        {"loss": "loss"},
        "Mean since the line before. It shows whether training is stable, and little about how good the features are: "
        "do not compare it between maskings, ratios or objectives. While masks grow it may stand still or rise, "
        "because the task becomes harder.",
    ),
    FigureRow(
        "learning",
        "Spread of the targets",
        {"target_spread": "spread"},
        "How much the teacher's features differ between images. It should stay away from 0, to which a collapsed "
        "average falls.",
        from_zero=True,
    ),
    FigureRow(
        "learning",
        "Learning rate",
        {"lr": "rate"},
        "The schedule: a linear warm-up, then a fall to the end of the run.",
        from_zero=True,
    ),
    FigureRow(
        "learning",
        "Gradient norm",
        {"grad_norm": "norm"},
        "The length of the gradient before clipping. Level or slowly changing is good. Peaks that grow announce a loss "
        "that is not finite: lower optim.base_lr, or set optim.clip_grad.",
        from_zero=True,
    ),
    FigureRow(
        "tokens",
        "Reconstruction error",
        {"mse": "squared error"},
        "Mean squared error of the pixels that the tokens give back; it should fall.",
        from_zero=True,
    ),
    FigureRow(
        "tokens",
        "Codes in use",
        {"codes_used": "share"},
        "The share of the vocabulary that occurs. A small one means that the tokens have collapsed.",
        SHARE,
        from_zero=True,
    ),
    FigureRow(
        "tokens",
        "Perplexity",
        {"perplexity": "codes"},
        "How many codes the images would use if all of them were equally common.",
        from_zero=True,
    ),
    FigureRow(
        "tokens",
        "Temperature",
        {"temperature": "temperature"},
        "How soft the choice of a code is; it falls by its schedule.",
        from_zero=True,
    ),
    FigureRow(
        "masks",
        "Height of the trees",
        {"tree_height": "height", "mask_level": "mask level"},
        "Levels of the hierarchies, mean over the batch. A low tree groups patches; a height near the number of "
        "patches is a chain, whose parts mean little. Masks are cut at the mask level, which follows the schedule.",
        from_zero=True,
    ),
    FigureRow(
        "masks",
        "Parts of an image",
        {"parts": "parts"},
        "How many parts an image falls into at the mask level. Fewer parts are larger ones.",
        from_zero=True,
    ),
    FigureRow(
        "masks",
        "Largest part",
        {"largest_part": "share"},
        "The share of the patches that the largest part holds. It grows with the mask level; near 100% long before the "
        "end shows a chain.",
        SHARE,
        from_zero=True,
    ),
    FigureRow(
        "speed",
        "Images a second",
        {"images_per_second": "all", "images_per_second_here": "first process"},
        "Of all processes together. It should be level; drops come from other programs or from slow storage.",
        from_zero=True,
    ),
    FigureRow(
        "speed",
        "Waiting",
        {"data_wait": "for images", "masks_wait": "for masks"},
        "The share of the time in which the device waited. For images, 5% is good and 20% worth a change; for masks, a "
        "third is usual for a small network on a CPU.",
        SHARE,
        from_zero=True,
    ),
    FigureRow(
        "speed",
        "Memory of the device",
        {"device_memory": "used"},
        "The most that the fullest device held; on a CPU, what the process holds. What is left allows a larger "
        "batch, or fewer parts of one (optim.accumulate).",
        BYTES,
        from_zero=True,
    ),
)


def _index_rows() -> dict[str, FigureRow]:
    rows = {}
    for row in KNOWN_FIGURES:
        for key in row.keys:
            rows[key] = row
    return rows


ROWS_BY_KEY: Mapping[str, FigureRow] = _index_rows()
"""The row of each known key of metrics.jsonl."""

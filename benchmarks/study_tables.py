"""The tables of the study (study.py), as lines of Markdown."""

from __future__ import annotations

import math
import statistics
from typing import Any

from scipy import stats

__all__ = ["MEASURES", "compare_maskings", "compare_objectives", "replace_table"]

MEASURES = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuning"}


def replace_table(text: str, mark: str, lines: list[str]) -> str:
    """Return ``text`` with ``lines`` between the comments of ``mark``."""
    before, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, _, after = rest.partition("<!-- end -->\n")
    return before + f"<!-- {mark} -->\n" + "\n".join(lines) + "\n<!-- end -->\n" + after


def compare_maskings(results: dict[str, dict[int, dict[str, Any]]], titles: dict[str, str]) -> list[str]:
    """Compare all maskings of one objective; returns no lines without runs."""
    total = describe_total(results)
    if not total:
        return []
    lines = [
        total,
        "",
        "AUC, mean ± standard deviation over seeds:",
        "",
        "| masking | seeds | " + " | ".join(MEASURES.values()) + " | tree height | largest part | minutes a run |",
        "|---|---|" + "---|" * (len(MEASURES) + 3),
    ]
    for name, arm in results.items():
        if not arm:
            continue
        rows = list(arm.values())
        cells = [format_spread([row[measure] for row in rows]) for measure in MEASURES]
        cells += [f"{average_key(rows, 'tree_height'):.1f}" if "tree_height" in rows[0] else "–"]
        cells += [f"{average_key(rows, 'largest_part'):.0%}" if "largest_part" in rows[0] else "–"]
        cells += [f"{average_key(rows, 'seconds') / 60:.1f}"]
        lines.append(f"| {titles[name]} | {len(rows)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Difference from random masks, paired by seed, with its 95 % interval (Student's t):",
        "",
        "| masking | " + " | ".join(MEASURES.values()) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    for name, arm in results.items():
        shared = [seed for seed in arm if seed in results["random"]]
        if name == "random" or len(shared) < 2:
            continue
        cells = [format_difference([arm[s][m] - results["random"][s][m] for s in shared]) for m in MEASURES]
        lines.append(f"| {titles[name]} | " + " | ".join(cells) + " |")
    return lines


def describe_total(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Describe how many runs there are and how long they took; empty without runs."""
    seconds = []
    for arm in results.values():
        seconds += [run["seconds"] for run in arm.values()]
    return f"{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes in all." if seconds else ""


def average_key(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def format_spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def format_difference(differences: list[float]) -> str:
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.3f} ± {half:.3f}"


def compare_objectives(results: dict[str, dict[int, dict[str, Any]]], titles: dict[str, str]) -> list[str]:
    """Compare each objective with its own masks and with evolved ones, as Table VIII does; no lines without runs."""
    total = describe_total(results)
    if not total:
        return []
    lines = [
        total,
        "",
        "AUC, mean ± standard deviation over seeds, and below it what evolved masks change, paired by seed, with its "
        "95 % interval (Student's t):",
        "",
        "| objective, masks | seeds | " + " | ".join(MEASURES.values()) + " | minutes a run |",
        "|---|---|" + "---|" * (len(MEASURES) + 1),
    ]
    for name, arm in results.items():
        rows = list(arm.values())
        if not rows:
            continue
        cells = [format_spread([row[measure] for row in rows]) for measure in MEASURES]
        lines.append(
            f"| {titles[name]} | {len(rows)} | " + " | ".join(cells) + f" | {average_key(rows, 'seconds') / 60:.1f} |"
        )
        own = results.get(name.removesuffix("-evolved"), {})
        shared = [seed for seed in arm if seed in own]
        if name.endswith("-evolved") and len(shared) > 1:
            cells = [format_difference([arm[seed][m] - own[seed][m] for seed in shared]) for m in MEASURES]
            lines.append("| *difference* | | " + " | ".join(cells) + " | |")
    return lines

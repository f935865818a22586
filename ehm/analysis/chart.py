"""Charts of figures over the layers of networks, by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.analysis.colours import PALETTE
from ehm.errors import BackendError
from ehm.installation import build_install_command
from ehm.storage.names import escape_undecodable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "check_matplotlib", "draw_chart", "render_figure"]

_INCHES = (12.0, 8.0)
_DPI = 100
_NOTE_WIDTH = 165
"""Characters of a line of notes at the foot of a chart."""
_COLOUR_ORDER = (4, 5, 2, 6, 0, 7, 8, 1, 9, 3)
"""The palette with its darkest colours first, because lines are thin and the paper is white."""


@dataclass(frozen=True)
class Line:
    """A line through ``values`` (K,), one for each layer from ``first`` on, with fainter dots at ``around`` (K, n)."""

    name: str
    values: NDArray[np.float64]
    around: NDArray[np.float64] | None = None
    first: int = 1


def check_matplotlib(command: str) -> None:
    """Raise BackendError, which names ``command`` and the extra to install, if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise BackendError(f"{command}: matplotlib is not installed; {build_install_command('plots')} installs it")


def draw_chart(title: str, notes: Sequence[str], lines: Sequence[Line], x_label: str, y_label: str) -> Figure:
    """Draw ``lines`` with a legend above them and ``notes`` below; the upward axis begins with 0.

    The figure can be changed and saved in every format of matplotlib, for example as SVG for a paper.
    """
    # Figure, not pyplot: pyplot keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for number, line in enumerate(lines):
        colour = PALETTE[_COLOUR_ORDER[number % len(_COLOUR_ORDER)]] / 255
        layers = np.arange(line.first, line.first + len(line.values))
        if line.around is not None:
            # Transparent, so that heads with nearly the same value show as a darker dot.
            axes.scatter(
                np.repeat(layers, line.around.shape[1]), line.around.ravel(), 12, color=colour, alpha=0.35, linewidths=0
            )
        handles += axes.plot(layers, line.values, marker="o", markersize=5, color=colour)
    # From 0, so that heights on the page compare as the values do.
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)

    # The constrained layout makes room for these three texts, however many lines they have.
    texts = [figure.suptitle(title, x=0.01, ha="left", fontsize=15)]
    foot = "\n".join(textwrap.fill(note, _NOTE_WIDTH) for note in notes)
    texts.append(figure.supxlabel(foot, x=0.01, ha="left", fontsize=9, color="0.35"))
    # matplotlib leaves labels out that begin with an underscore, so the names are written into the finished legend.
    legend = axes.legend(handles, ["-"] * len(handles), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_text(escape_undecodable(line.name))
        texts.append(text)
    for text in texts:
        text.set_parse_math(False)  # a dollar sign in the name of a file is no formula
    return figure


def render_figure(figure: Figure) -> Image.Image:
    """Return ``figure`` as a picture in RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Names of files may have characters that matplotlib's font lacks; they show as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

"""matplotlib figures for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # most pages have no figure, and matplotlib takes a quarter of a second to load
    from matplotlib.figure import Figure

_LONGEST_NAME = 34
_FEW = 30
"""Classes up to which shares are written into a confusion figure, in percent."""
_WRITTEN = 0.1
"""Smallest share that is written."""


def figure_url(figure: Figure, dpi: int = 110) -> str:
    """A figure as a PNG data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, bbox_inches='tight', facecolor='white')
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()


def short_name(name: str) -> str:
    """A class name that fits beside an axis."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 2] + '…'


def confusion_figure(counts: npt.NDArray[np.integer], classes: Sequence[str], title: str = '') -> Figure:
    """Share of every true class that is taken for every class, of counts [truth, guess]."""
    from matplotlib.figure import Figure

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(11.0, 2.2 + 0.2 * len(share))
    figure = Figure(figsize=(side + 0.8, side))
    ax = figure.subplots()
    image = ax.imshow(share, cmap='Greens', vmin=0, vmax=1)
    names = [short_name(c) for c in classes]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    ax.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    for truth, guess in zip(*np.nonzero(share >= _WRITTEN), strict=True) if len(share) <= _FEW else ():
        colour = 'white' if share[truth, guess] > 0.5 else 'black'
        text = f'{100 * share[truth, guess]:.0f}'
        ax.text(guess, truth, text, ha='center', va='center', fontsize=6, color=colour)
    ax.set(xlabel='taken for', ylabel='truth')
    ax.set_title(title, parse_math=False)
    figure.colorbar(image, fraction=0.04, pad=0.02, label='share of the true class')
    figure.tight_layout()
    return figure

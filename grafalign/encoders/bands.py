"""Bands by their names: which of CLIP's colours they are, and what a patch embedding makes of the others.

CLIP knows red, green and blue. A satellite's bands have names and come in any order: the band that is red goes to
CLIP's red filters and takes red's mean, wherever it stands; one that is no colour starts from the mean of the colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grafalign.errors import InputError

_COLOURS = {'red': 0, 'green': 1, 'blue': 2, 'r': 0, 'g': 1, 'b': 2, 'b04': 0, 'b03': 1, 'b02': 2}
"""Common names of STAC, their first letters, and Sentinel-2's names; not `B4`, which on Landsat 7 is no red."""


def colours(bands: Sequence[str] | int) -> list[int | None]:
    """The colour of each band: 0 red, 1 green, 2 blue, None for any other.

    Names in any case. Where no name is a colour, or only the number of bands is known, the first three are red, green
    and blue, as in any picture.

    Raises:
        GrafalignError: there is no band.
    """
    count = bands if isinstance(bands, int) else len(bands)
    if count < 1:
        raise InputError('An encoder without bands sees nothing; name at least one band in sensor.bands.')
    known = [] if isinstance(bands, int) else [_COLOURS.get(name.lower()) for name in bands]
    if any(colour is not None for colour in known):
        return known
    return [i if i < 3 else None for i in range(count)]


def per_band(three: Sequence[float], bands: Sequence[str] | int) -> list[float]:
    """A value for each band, from one for red, green and blue: the colour's own, or the mean of the three."""
    return [sum(three) / 3 if colour is None else three[colour] for colour in colours(bands)]


def inflate(conv: nn.Conv2d, bands: Sequence[str] | int) -> None:
    """Make a convolution over red, green and blue one over any bands, in place, whose output keeps its scale.

    Colours keep their filters, others start from the filters' mean; all are multiplied by 3 / bands, so that bands
    which show the same give what three showed.
    """
    which = colours(bands)
    if which == [0, 1, 2]:
        return
    with torch.no_grad():
        mean = conv.weight.mean(1, keepdim=True)
        filters = [mean if colour is None else conv.weight[:, colour : colour + 1] for colour in which]
        conv.weight = nn.Parameter(torch.cat(filters, dim=1) * (3 / len(which)))
    conv.in_channels = len(which)


def zero_input(mean: Sequence[float], std: Sequence[float], bands: Sequence[str] | int) -> Tensor:
    """What 0 is after normalisation by mean and standard deviation, for each band: [1, C, 1, 1]."""
    return ((0 - torch.tensor(per_band(mean, bands))) / torch.tensor(per_band(std, bands))).view(1, -1, 1, 1)


def select_bands(bands: Sequence[str], wanted: Sequence[str], owner: str) -> list[int]:
    """Positions of wanted bands among those that tiles or pictures have.

    A band is found by its name, else by the name in another case, else by its colour: red is B04.

    Args:
        bands: names of the bands there are.
        wanted: names of the bands to find.
        owner: whose bands they are, for the error.

    Raises:
        InputError: there is no such band; the sentence names every one that is missing.

    Example:
        >>> select_bands(('B02', 'B03', 'B04'), ['red', 'b02'], 'sentinel-2')
        [2, 0]
    """
    exact = {name: i for i, name in reversed(list(enumerate(bands)))}
    lower = {name.lower(): i for name, i in exact.items()}
    by_colour = {_COLOURS[name]: i for name, i in lower.items() if name in _COLOURS}
    places = [
        exact.get(name, lower.get(name.lower(), by_colour.get(_COLOURS.get(name.lower(), -1)))) for name in wanted
    ]
    missing = [name for name, place in zip(wanted, places, strict=True) if place is None]
    if missing:
        raise InputError(
            f'{owner} has no band {" and no band ".join(missing)}; its bands are {", ".join(bands)}: '
            f'ask for those, or pair again with sensor.bands [{", ".join([*bands, *missing])}].'
        )
    return [place for place in places if place is not None]

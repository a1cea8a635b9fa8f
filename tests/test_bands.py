"""Bands are known by their names: filters, mean and black follow the colours, and a missing band is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grafalign.encoders import SatelliteEncoder, TilePreprocessing, select_bands
from grafalign.errors import GrafalignError
from grafalign.store_marker import Sensor
from tests.small_clips import TOWERS, small_clip

every_tower = pytest.mark.parametrize('tower', TOWERS)


def noise(*shape: int) -> Tensor:
    """The same random numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@every_tower
def test_a_colour_is_found_by_its_name(tower: str) -> None:
    """An encoder for bands in another order gives, for tiles in that order, what the one for red, green, blue gives."""
    clip, images = small_clip(tower), noise(2, 3, 64, 64)
    expected = SatelliteEncoder(clip).eval()(images)
    for bands in (['Blue', 'red', 'GREEN'], ['B02', 'B04', 'B03'], ['b', 'r', 'g']):
        found = SatelliteEncoder(clip, bands).eval()(images[:, [2, 0, 1]])
        torch.testing.assert_close(found.image, expected.image)
        torch.testing.assert_close(found.patches, expected.patches)


@every_tower
def test_more_bands_keep_the_scale(tower: str) -> None:
    """Six bands that show the same give what three bands give."""
    clip, grey = small_clip(tower), noise(2, 1, 64, 64)
    three, six = (
        SatelliteEncoder(clip).eval(),
        SatelliteEncoder(clip, ['nir', 'red', 'B11', 'green', 'x', 'blue']).eval(),
    )
    torch.testing.assert_close(
        six(grey.expand(-1, 6, -1, -1)).image, three(grey.expand(-1, 3, -1, -1)).image, atol=1e-5, rtol=1e-4
    )


def test_a_band_that_is_no_colour_starts_from_the_mean_of_the_filters() -> None:
    """Red has red's filters wherever it stands, nir and a second nir their mean, all times 3 / bands."""
    clip = small_clip('class token')
    own: Any = clip.model.visual.conv1.weight
    found = SatelliteEncoder(clip, ['nir', 'red', 'nir2', 'green', 'blue']).visual.conv1.weight * (5 / 3)
    torch.testing.assert_close(found[:, [1, 3, 4]], own)
    for place in (0, 2):
        torch.testing.assert_close(found[:, place], own.mean(1))


@pytest.mark.parametrize('bands', [5, ['image:1', 'image:2', 'image:3', 'image:4', 'image:5']])
def test_bands_without_names_begin_with_red_green_blue(bands: int | list[str]) -> None:
    """Where no name is a colour, the first three bands take CLIP's filters as they stand."""
    clip = small_clip('class token')
    own: Any = clip.model.visual.conv1.weight
    torch.testing.assert_close(SatelliteEncoder(clip, bands).visual.conv1.weight[:, :3] * (5 / 3), own)


def test_mean_and_deviation_follow_the_colours() -> None:
    """The pixel rule gives the red band red's mean wherever it stands, and other bands the average."""
    clip = small_clip('class token')
    rule = TilePreprocessing(Sensor('s', ('nir', 'B02', 'B03', 'B04'), 10, 64, (0, 1)), clip)
    torch.testing.assert_close(
        rule.get_buffer('mean').flatten(), torch.tensor([sum(clip.mean) / 3, *reversed(clip.mean)])
    )
    torch.testing.assert_close(rule.get_buffer('std').flatten()[1:], torch.tensor(clip.std).flip(0))


def test_wanted_bands_are_found_by_name_case_and_colour() -> None:
    """The exact name wins, then the name in another case, then the band of the same colour."""
    sensor = Sensor('s2', ('B02', 'B03', 'B04', 'B08', 'red'), 10, 64, (0, 1))
    assert select_bands(sensor.bands, ['red', 'b08', 'Green', 'B04'], 's') == [4, 3, 1, 2]
    assert select_bands(('Nir', 'nir', 'NIR'), ['nir', 'NIR', 'nIR'], 's') == [1, 2, 0]


def test_a_missing_band_is_named() -> None:
    """Every missing band is named, with those there are and the remedy."""
    sensor = Sensor('naip', ('red', 'green', 'blue'), 1, 64, (0, 1))
    with pytest.raises(
        GrafalignError, match=r'naip has no band nir and no band B11; its bands are red, green, blue: ask'
    ):
        select_bands(sensor.bands, ['red', 'nir', 'B11'], sensor.name)


def test_the_black_of_padding_follows_the_colours() -> None:
    """Named bands are padded with the black of their own colour, so that order changes nothing."""
    clip, images = small_clip('SigLIP'), noise(2, 3, 40, 40)
    expected = SatelliteEncoder(clip, size_px=40, fit='pad').eval()(images).image
    found = SatelliteEncoder(clip, ['blue', 'green', 'red'], 40, 'pad').eval()(images.flip(1)).image
    torch.testing.assert_close(found, expected)


def test_images_with_other_bands_or_another_size_are_named() -> None:
    """An encoder says what it takes and what it was given."""
    encoder = SatelliteEncoder(small_clip('class token'), bands=4)
    with pytest.raises(GrafalignError, match='takes 4 bands and the images have 3'):
        encoder(noise(1, 3, 64, 64))
    with pytest.raises(GrafalignError, match=r'64 x 64 px and the images are 96 x 64'):
        encoder(noise(1, 4, 96, 64))
    with pytest.raises(GrafalignError, match='at least one band'):
        SatelliteEncoder(small_clip('class token'), [])

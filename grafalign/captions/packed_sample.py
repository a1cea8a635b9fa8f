"""The `grafalign` key of KEY.json in packed shards: what a sample of WebDataset has no place for.

`captions pack` writes it and `captions import` reads it back, so that evidence, checks and writers survive the way
through shards. Other readers pass over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grafalign.errors import DamagedError

KEY = 'grafalign'
_Strings = tuple[Annotated[str, Field(max_length=10_000)], ...]


class PackedCaption(BaseModel):
    """Columns of `captions.parquet` besides the text."""

    model_config = ConfigDict(frozen=True, extra='ignore')

    kind: Literal['alt', 'template', 'model', 'human']
    writer: str | None = None
    writer_digest: str | None = None
    evidence: _Strings = ()
    checks: _Strings = ()


class PackedSample(BaseModel):
    """An image and its captions, in the order of `captions` of KEY.json."""

    model_config = ConfigDict(frozen=True, extra='ignore')

    image_id: Annotated[str, Field(min_length=1)]
    captions: tuple[PackedCaption, ...]
    scores: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}

    @staticmethod
    def of_rows(image: Mapping[str, Any], captions: Sequence[Mapping[str, Any]], where: str) -> PackedSample:
        """What the tables of a set say of an image and its captions.

        Args:
            image: row of `images.parquet`.
            captions: rows of `captions.parquet`.
            where: the set, for errors.

        Raises:
            DamagedError: a row holds what no set does.
        """
        scores = {name: value for name, value in image.get('scores') or () if math.isfinite(value)}
        stated = [{k: v for k, v in caption.items() if v is not None} for caption in captions]
        try:
            return PackedSample.model_validate({**image, 'captions': stated, 'scores': scores})
        except ValidationError as error:
            first = error.errors()[0]
            place = '.'.join(map(str, first['loc']))
            raise DamagedError(
                f'{where}: {place} of image {image["image_id"]}: {first["msg"]}; import it again.'
            ) from None

    @staticmethod
    def of_json(entry: Mapping[str, Any], texts: int) -> PackedSample | None:
        """What KEY.json holds under the key.

        Args:
            entry: KEY.json.
            texts: captions of the sample.

        Returns:
            None where there is no such key.

        Raises:
            ValueError: the key holds something else, or speaks of another number of captions.
        """
        if KEY not in entry:
            return None
        try:
            packed = PackedSample.model_validate(entry[KEY])
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f'{".".join(map(str, (KEY, *first["loc"])))}: {first["msg"]}') from None
        if len(packed.captions) != texts:
            raise ValueError(f'{KEY}.captions speaks of {len(packed.captions)} captions, the sample has {texts}')
        return packed

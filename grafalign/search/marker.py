"""`index.json`, the marker of an index: what made its vectors, where they came from, and which files count."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic.functional_validators import ModelWrapValidatorHandler

from grafalign.artefacts import Marker
from grafalign.retrieval.ann import Kind, SearchParameters

Count = Annotated[int, Field(ge=0, le=10**15, strict=True)]


class IndexModel(BaseModel):
    """The model that made the vectors."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    spec: str = ''
    """How it was named: run, export, NAME:TAG ..."""
    clip: str | None = None
    """The CLIP that it was loaded with, where one was named."""
    name: str
    kind: str = ''
    digest: str
    """Of its weights and preprocessing."""
    pixels: dict[str, Any] = {}
    """How pixels were prepared for it."""


class IndexSource(BaseModel):
    """Where items came from: a store or a folder."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    bands: tuple[str, ...]
    value_range: tuple[float, float]
    dtype: str = 'other'
    """`uint8` for 8-bit pictures, black at 0 and white at 255."""


class ApproximateIndex(BaseModel):
    """FAISS's index of the first rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, populate_by_name=True)

    file: str
    kind: Kind
    rows: Count
    target: float
    """Recall that it was tuned for."""
    trained_rows: Count
    """Rows when its cells were learned."""
    search_parameters: tuple[SearchParameters, ...] = Field(
        validation_alias=AliasChoices('search_parameters', 'efforts')
    )
    """For some numbers of neighbours; called `efforts` by earlier releases."""


def _or_none(value: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None  # it can be made again from the vectors


class IndexMarker(Marker):
    """`index.json`."""

    model_config = ConfigDict(extra='ignore', frozen=True, use_attribute_docstrings=True, protected_namespaces=())
    REMEDY: ClassVar[str] = 'make the index again with `grafalign index` into an empty folder'

    format: int
    width: Annotated[int, Field(gt=0, le=10**6, strict=True)]
    """D."""
    rows: Count
    """Vectors, removed ones among them."""
    model: IndexModel
    target: float
    """Recall that an approximate index must reach."""
    sources: dict[str, IndexSource]
    kind: Kind | None
    """Of the approximate index, where one was asked for."""
    digests: dict[str, str] = {}
    """Of the files that do not grow."""
    stretches: tuple[tuple[Count, str], ...] | None = None
    """Rows and digest of each stretch of vectors, in their order; none in indexes of before there were digests."""
    ann: Annotated[ApproximateIndex | None, WrapValidator(_or_none)] = None
    files: dict[str, Count]
    """Every file that counts, with its size in bytes."""

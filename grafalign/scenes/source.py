"""The `scenes:` part of a recipe: where to look for scenes, and which of them to use."""

from __future__ import annotations

import os
from datetime import date as Day
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from grafalign.config import Settings
from grafalign.scenes.where import Where, check_where

PLANETARY_COMPUTER = 'planetary-computer'
_LOCAL_SCHEMES = ['file', 'http', 'https', 's3', 'gs', 'az']
_API_SCHEMES = ['http', 'https', 's3', 'gs', 'az']


class SignSettings(Settings):
    """How asset addresses are signed; `sign: planetary-computer` stands for the defaults."""

    tokens: str = 'https://planetarycomputer.microsoft.com/api/sas/v1/token'
    """The token service: `{tokens}/ACCOUNT/CONTAINER` gives a token for one container."""
    blob_hosts: str = '.blob.core.windows.net'
    """Hosts to sign for: a suffix that follows the account's name, or a whole `HOST:PORT` whose paths begin with
    /ACCOUNT/CONTAINER (as the Azurite emulator has it). Everything else is passed on unsigned."""


def _shorthand(value: Any) -> Any:
    if isinstance(value, str):
        if value != PLANETARY_COMPUTER:
            raise ValueError(f'`sign` knows {PLANETARY_COMPUTER}, or give `tokens` and `blob_hosts`')
        return SignSettings()
    return value


class SceneSource(Settings):
    """The `scenes:` part of a recipe; give one of `catalog`, `items`, `folder` and `api`."""

    catalog: Path | None = None
    """Static STAC catalog or collection (JSON)."""
    items: Path | None = None
    """Item file: a JSON item, an ItemCollection, NDJSON, or stac-geoparquet."""
    folder: Path | None = None
    """GeoTIFFs without items: a folder, whose .tif and .tiff count at any depth, or a pattern (`in/*_rgb.tif`)."""
    date: Day | None = None
    """Of rasters in `folder`: when those were taken whose tags and names say no date."""
    api: str | None = None
    """Root URL of a STAC API."""
    collections: list[str] = []
    """Only these collections; all where empty. An API needs at least one."""
    period: tuple[Day, Day] | None = None
    """First and last day, both included."""
    max_cloud_percent: float | None = Field(default=None, ge=0, le=100)
    """Scenes with more `eo:cloud_cover` than this are not used; scenes that say nothing are."""
    where: Annotated[Where, BeforeValidator(check_where)] = {}
    """Conditions on any property, `{property: {operator: value}}`, with the operators lt, lte, gt, gte, eq, neq, in and
    startsWith; an item without the property is not used."""
    schemes: list[str] | None = None
    """Allowed schemes of asset addresses; a plain path counts as `file`. By default file, http, https, s3, gs and az,
    and for an API the same without `file`: what a server says must not decide which local files are read."""
    private_addresses: bool = False
    """Whether items of an API may point at loopback, link-local and private network addresses. They always may if the
    API itself has such an address. Names are resolved once, when the items are loaded."""
    sign: Annotated[SignSettings | None, BeforeValidator(_shorthand)] = None
    """Sign asset addresses with short-lived tokens; `planetary-computer`, or the settings of another such service."""
    cache: Path | None = Field(default=None, exclude=True)
    """Where searches of an API and items of a folder are kept; $XDG_CACHE_HOME/grafalign/scenes or
    ~/.cache/grafalign/scenes by default. Not part of a recipe's identity."""
    search_cell_deg: float = Field(default=4.0, ge=0.1, le=90)
    """An API is searched by cells of this size in degrees that hold photos."""
    page_items: int = Field(default=250, ge=1, le=10_000)
    """Items an API is asked for at a time."""
    timeout_s: float = Field(default=60.0, gt=0, exclude=True)
    """Seconds to wait for an API to connect or to send."""
    retries: int = Field(default=5, ge=0, exclude=True)
    """How often a request to an API that failed for the moment is made again."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        if sum(v is not None for v in (self.catalog, self.items, self.folder, self.api)) != 1:
            raise ValueError('give exactly one of `catalog`, `items`, `folder` and `api`')
        if self.date is not None and self.folder is None:
            raise ValueError('`date` is for the rasters of `folder`; items say their own')
        if self.api is not None and not self.collections:
            raise ValueError('a STAC API needs `collections`')
        if self.period is not None and self.period[1] < self.period[0]:
            raise ValueError('`period` must not end before it begins')
        return self

    @property
    def name(self) -> str:
        """What to call the source in messages."""
        return str(self.catalog or self.items or self.folder or self.api)

    @property
    def cache_folder(self) -> Path:
        """Where searches and items are kept."""
        if self.cache is not None:
            return self.cache.expanduser()
        root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        return Path(root).expanduser() / 'grafalign' / 'scenes'

    @property
    def allowed_schemes(self) -> list[str]:
        """Schemes of asset addresses that may be read."""
        if self.schemes is not None:
            return [s.lower() for s in self.schemes]
        return _LOCAL_SCHEMES if self.api is None else _API_SCHEMES

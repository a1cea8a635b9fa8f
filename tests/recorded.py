"""STAC items as public catalogs served them (`fixtures/stac`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / 'fixtures' / 'stac'


def recorded(name: str) -> list[dict[str, Any]]:
    """The items of a catalog: `earth-search_sentinel-2-l2a`, `planetary-computer_sentinel-2-l2a` or `..._naip`."""
    return [json.loads(line) for line in (_FOLDER / f'{name}.ndjson').read_text().splitlines()]

"""JSON schemas of the markers, for readers in other languages: `python -m grafalign.schemas docs/schemas`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafalign.artefacts import Marker
from grafalign.benchmarks.results import Result
from grafalign.calibration.places import CalibrationMarker
from grafalign.captions import CaptionSetMarker
from grafalign.captions.landmarks.find import LandmarksMarker
from grafalign.captions.leaks import LeaksMarker
from grafalign.captions.set_hashes import HashesMarker
from grafalign.curation.features import FeaturesMarker
from grafalign.curation.stored import FilterMarker
from grafalign.encoders.bank import BankMarker
from grafalign.encoders.text_bank import TextBankMarker
from grafalign.exchange.marker import ExportMarker
from grafalign.fields.marker import FieldMarker
from grafalign.report import Report
from grafalign.search.marker import IndexMarker
from grafalign.store_marker import StoreMarker
from grafalign.training.provenance import CaptionsMarker, DataMarker
from grafalign.training.run_marker import RunMarker

MARKERS: dict[str, type[Marker]] = {
    'dataset.json': StoreMarker,
    'bank.json': BankMarker,
    'caption_set.dataset.json': CaptionSetMarker,
    'text_bank.bank.json': TextBankMarker,
    'hashes.json': HashesMarker,
    'landmarks.json': LandmarksMarker,
    'features.json': FeaturesMarker,
    'leaks.json': LeaksMarker,
    'filter.json': FilterMarker,
    'model.json': RunMarker,
    'data.json': DataMarker,
    'captions.json': CaptionsMarker,
    'index.json': IndexMarker,
    'result.json': Result,
    'field.json': FieldMarker,
    'calibration.json': CalibrationMarker,
    'report.json': Report,
    'grafalign_export.json': ExportMarker,
}


def schema_files() -> dict[str, str]:
    """Content of every schema's file, by its name."""
    return {
        f'{Path(name).stem}.schema.json': json.dumps(
            {'$schema': 'https://json-schema.org/draft/2020-12/schema', **marker.model_json_schema()}, indent=2
        )
        + '\n'
        for name, marker in MARKERS.items()
    }


if __name__ == '__main__':
    for file, content in schema_files().items():
        (Path(sys.argv[1]) / file).write_text(content)

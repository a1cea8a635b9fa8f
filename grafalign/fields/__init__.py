"""What each place of a scene looks like in CLIP's space: encoded once, asked for ever."""

from grafalign.fields.build import FieldInput, make_field
from grafalign.fields.field import Field, Scores, open_field
from grafalign.fields.marker import MARKER, FieldMarker, FieldPlan
from grafalign.fields.source import FieldOptions, field_input, window_encoder

__all__ = [
    'MARKER',
    'Field',
    'FieldInput',
    'FieldMarker',
    'FieldOptions',
    'FieldPlan',
    'Scores',
    'field_input',
    'make_field',
    'open_field',
    'window_encoder',
]

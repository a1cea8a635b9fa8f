"""How sure a map may be: probabilities and "none of these" from photos whose class CLIP knows, without a label."""

from grafalign.calibration.collect import collect_places
from grafalign.calibration.contrast import contrasting_words
from grafalign.calibration.fit import Calibration, Question, calibrate
from grafalign.calibration.places import CalibrationMarker, PhotoPlaces, open_places

__all__ = [
    'Calibration',
    'CalibrationMarker',
    'PhotoPlaces',
    'Question',
    'calibrate',
    'collect_places',
    'contrasting_words',
    'open_places',
]

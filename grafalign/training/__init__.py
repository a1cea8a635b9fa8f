"""Train a satellite encoder: objective, data, loop, checkpoints."""

from grafalign.training.settings import TrainSettings
from grafalign.training.trainer import SatelliteModel, load_satellite, train

__all__ = ['SatelliteModel', 'TrainSettings', 'load_satellite', 'train']

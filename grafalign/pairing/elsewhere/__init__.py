"""Pairs that others made, of ground photos and tiles of the same place, as a pair store."""

from grafalign.pairing.elsewhere.run import import_pairs
from grafalign.pairing.elsewhere.settings import PairImport

__all__ = ['PairImport', 'import_pairs']

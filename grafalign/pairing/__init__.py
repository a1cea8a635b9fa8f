"""Photos x scenes -> pair store."""

from grafalign.pairing.recipe import Recipe
from grafalign.pairing.run import PairSummary, pair

__all__ = ['PairSummary', 'Recipe', 'pair']

"""Photos x scenes -> pair store."""

from grafalign.pairing.finish import PairSummary
from grafalign.pairing.recipe import Recipe
from grafalign.pairing.run import pair

__all__ = ['PairSummary', 'Recipe', 'pair']

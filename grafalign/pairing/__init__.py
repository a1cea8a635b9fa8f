"""From photos and scenes to a pair store: plan, choose, cut, write."""

from grafalign.pairing.recipe import Recipe
from grafalign.pairing.run import pair
from grafalign.store_marker import PairSummary

__all__ = ['PairSummary', 'Recipe', 'pair']

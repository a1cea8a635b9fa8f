"""Weights on their way out to other tools, and in from them: open_clip, transformers, the Hub, GRAFT's checkpoints."""

from grafalign.exchange.graft_checkpoint import load_graft
from grafalign.exchange.publish import publish

__all__ = ['load_graft', 'publish']

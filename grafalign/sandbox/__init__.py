"""A small procedural world: the offline default and the test bench."""

from pathlib import Path

TINY_CLIP_DIR = Path(__file__).parent / 'tiny_clip'
"""The sandbox's own CLIP, a folder of open_clip: it knows ground photos and words and has never seen a tile
(`experiments/sandbox/train_clip.py` made it)."""

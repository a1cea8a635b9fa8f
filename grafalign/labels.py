"""The one convention of label maps: class numbers from 0, and a number for pixels that no class is asked of."""

from __future__ import annotations

VOID = 255
"""Of pixels that are not scored: unlabelled ones, and what is narrower than can be seen."""

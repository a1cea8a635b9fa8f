"""grafalign: vision-language models for satellite imagery, trained without a single caption."""

from importlib.metadata import version

from grafalign.errors import GrafalignError

__all__ = ['GrafalignError', '__version__']
__version__ = version('grafalign')

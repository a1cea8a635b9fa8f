"""Questions about a scene: typed programs over a field, whose answers bring their evidence."""

from grafalign.questions.ask import ask, program_of
from grafalign.questions.conventions import conventions_of
from grafalign.questions.evaluate import Answer

__all__ = ['Answer', 'ask', 'conventions_of', 'program_of']

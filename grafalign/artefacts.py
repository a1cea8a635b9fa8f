"""Markers: the JSON file that an artefact is finished by, written last, as a typed model with a version.

A marker says which format its folder has and what the rest of the folder depends on. Unknown keys of a later release
are ignored, a later format is refused, and damage is one sentence with the remedy of that artefact.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from grafalign.errors import DamagedError, StaleError
from grafalign.files import Place, write_atomically
from grafalign.foreign.files import open_plain, parse_object, whole_number

_MOST_BYTES = 256 << 20


class Marker(BaseModel):
    """Base of the markers.

    A subclass sets `REMEDY`, perhaps the other class variables, and has a field for its version, `format`.
    """

    model_config = ConfigDict(extra='ignore', frozen=True, use_attribute_docstrings=True)

    NEWEST: ClassVar[int] = 1
    """The format that this release writes, and the newest that it reads."""
    OLDEST: ClassVar[int] = 1
    """The oldest format that it reads."""
    VERSION_KEY: ClassVar[str] = 'format'
    REMEDY: ClassVar[str]
    """What to do about a damaged or outdated one, as the end of a sentence."""

    @classmethod
    def read(cls, path: Place) -> Self:
        """Read and check a marker.

        Raises:
            GrafalignError: it cannot be read, is damaged, or of a format that is not read.
        """
        try:
            with open_plain(path, _MOST_BYTES) if isinstance(path, Path) else path.open('rb') as file:
                content = file.read()
        except OSError as error:
            raise DamagedError(f'{path} cannot be read ({error.strerror or error}); {cls.REMEDY}.') from None
        except ValueError as error:
            raise DamagedError(f'{path} is damaged ({error}); {cls.REMEDY}.') from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, text: bytes, path: Place) -> Self:
        """Check a marker that was read, or that is a part of another file.

        Args:
            text: JSON.
            path: the file it is of, for errors.

        Raises:
            GrafalignError: it is damaged, or of a format that is not read.
        """
        try:
            content = parse_object(text)
            version = whole_number(content.get(cls.VERSION_KEY, 0), 10**6)
            if version > cls.NEWEST:
                raise StaleError(
                    f'{path} was written by a newer grafalign ({cls.VERSION_KEY} {version}; this one reads up to '
                    f'{cls.NEWEST}); upgrade grafalign.'
                )
            if version < cls.OLDEST:
                raise StaleError(
                    f'{path} was written by another version of grafalign ({cls.VERSION_KEY} {version}; this one reads '
                    f'{cls.OLDEST} to {cls.NEWEST}); {cls.REMEDY}.'
                )
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = '.'.join(str(part) for part in first['loc'])
            raise DamagedError(f'{path} is damaged ({key}: {first["msg"]}); {cls.REMEDY}.') from None
        except ValueError as error:
            raise DamagedError(f'{path} is damaged ({error}); {cls.REMEDY}.') from None

    def write(self, path: Place) -> None:
        """Write the marker, atomically."""
        write_atomically(path, (self.model_dump_json(indent=2) + '\n').encode())

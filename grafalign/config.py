"""Strict settings: YAML in, pydantic models out, and one sentence that names file, key and remedy when it is wrong."""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from grafalign.errors import InputError
from grafalign.foreign.files import ForeignFileError, open_plain


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors and values do not change."""

    model_config = ConfigDict(extra='forbid', frozen=True)


Model = TypeVar('Model', bound=Settings)


def load_settings(path: Path, model: type[Model], changes: Iterable[str] = ()) -> Model:
    """Read a YAML file into a settings model.

    Args:
        path: the YAML file; relative paths inside it are relative to the current folder, as on a command line.
        model: the settings class.
        changes: `dotted.key=value` settings that override the file, values in YAML.

    Raises:
        GrafalignError: the file is missing, is not YAML, or a key is unknown, missing or has a wrong value.
    """
    try:
        content = read_yaml(Path(path))
    except FileNotFoundError:
        raise InputError(f'There is no file {path}; give the path of a YAML file.') from None
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error}); give the path of a YAML file.') from None
    except ValueError as error:
        raise InputError(f'{path} is not valid YAML: {" ".join(str(error).split())}. Mend that line.') from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f'{path} holds no settings; write one `key: value` a line.')
    for change in changes:
        apply_change(content, change)
    return parse_settings(content, model, str(path))


_YAML_BYTES = 16 << 20


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: nine lines of them stand for a billion values, and no settings need one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, 'aliases (*name) are not read')
        return super().compose_node(parent, index)


def read_yaml(source: Path | str) -> Any:
    """The content of a YAML file, or of a text.

    Raises:
        ValueError: it is no YAML that is read here.
        OSError: it cannot be read.
    """
    if isinstance(source, Path):
        try:
            with open_plain(source, _YAML_BYTES) as file:
                source = file.read().decode('utf-8')
        except ForeignFileError as error:
            raise OSError(str(error)) from None
    try:
        return yaml.load(source, _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(' '.join(str(error).split())) from None
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def shown(value: Any, longest: int = 60) -> str:
    """A value for a sentence: short, however large it is."""
    if isinstance(value, str | int | float | bool | None) and len(str(value)[: longest + 1]) <= longest:
        return repr(value)
    text = reprlib.repr(value)
    return text if len(text) <= longest else text[:longest] + ' ...'


def parse_settings(content: dict[str, Any], model: type[Model], name: str) -> Model:
    """Check a dictionary of settings; `name` is the file to name in errors."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(_sentence(error, model, name)) from None


def settings_digest(settings: BaseModel, meaning: int, exclude: Any = None) -> str:
    """Digest of settings that holds over releases.

    Only what differs from the defaults counts, by name, so that a new optional key changes no digest of before.

    Args:
        settings: the settings.
        meaning: raised when a key or a default comes to mean something else.
        exclude: keys that do not count, as pydantic takes them.
    """
    content = settings.model_dump(mode='json', exclude_defaults=True, exclude=exclude)
    text = json.dumps([meaning, content], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def apply_change(content: dict[str, Any], change: str) -> None:
    """Apply one `dotted.key=value` override in place."""
    key, equals, value = change.partition('=')
    if not equals or not key:
        raise InputError(f'--set {change} is not understood; write --set key.subkey=value.')
    *path, last = key.split('.')
    for part in path:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise InputError(f'--set {change} is not understood: {part} holds no keys.')
    try:
        content[last] = read_yaml(value)
    except ValueError:
        raise InputError(f'--set {change} is not understood: {value!r} is not YAML; mend that value.') from None


def _sentence(error: ValidationError, model: type[BaseModel], name: str) -> str:
    first = error.errors()[0]
    key = '.'.join(str(part) for part in first['loc'])
    more = f' ({error.error_count() - 1} more like this)' if error.error_count() > 1 else ''
    if first['type'] == 'extra_forbidden':
        known = _known_keys(model, first['loc'][:-1])
        near = difflib.get_close_matches(str(first['loc'][-1]), known, 1)
        remedy = f'did you mean {near[0]!r}?' if near else f'known keys here: {", ".join(known)}.'
        return f'{name}: unknown key {key!r}; {remedy}{more}'
    if first['type'] == 'missing':
        return f'{name}: the key {key!r} is missing; add it.{more}'
    problem = first['msg'].removeprefix('Value error, ')
    where = f'{key!r}: ' if key else ''
    given = f' (it is {shown(first["input"])})' if key and not isinstance(first['input'], dict) else ''
    return f'{name}: {where}{problem}{given}; mend that value.{more}'


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        kinds = [field.annotation, *getattr(field.annotation, '__args__', ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)

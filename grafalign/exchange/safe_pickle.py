"""Tensors out of a pickle without running anything of it.

A pickle can run any code when it is loaded. torch's own restricted loader reads tensors and refuses every other class;
here the classes of a few harmless kinds (what Lightning and omegaconf put beside the weights) become empty stand-ins,
so that the tensors can be had without installing or running those packages. Anything else is refused by its name.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grafalign.errors import InputError

_KNOWN = (
    *('omegaconf', 'typing', 'collections', 'numpy', 'pathlib', 'datetime', 'argparse', 'enum'),
    *('pytorch_lightning', 'lightning', 'lightning_fabric', 'lightning_utilities'),
)
_PLAIN: tuple[Any, ...] = (dict, list, tuple, set, frozenset, int, float, bool, str, bytes, complex)
_MAPPINGS = ('defaultdict', 'AttributeDict')


def load_without_code(path: Path) -> Any:
    """Content of a file that `torch.save` wrote, on the CPU, with empty objects for all that is not plain or a tensor.

    Raises:
        GrafalignError: it names a class or function of no harmless kind.
        ValueError: it is no such file.
        pickle.UnpicklingError, RuntimeError, OSError: it is damaged.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError('it is no zip archive, as torch.save writes')
    with _stand_ins(path):
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)


@contextlib.contextmanager
def _stand_ins(path: Path) -> Iterator[None]:
    """Let torch meet a stand-in wherever the pickle names a class of a harmless kind."""
    plain = {t.__name__: t for t in _PLAIN}
    classes: list[Any] = []
    for module, name in sorted(_named(path)):
        root = module.partition('.')[0]
        if module == 'builtins' and name in plain:
            classes.append(plain[name])
        elif root in _KNOWN:
            kind = _Mapping if name in _MAPPINGS else _Empty
            classes.append(type(name, (kind,), {'__module__': module}))
        elif root not in ('torch', '_codecs'):  # about these torch decides
            raise InputError(
                f'{path} holds code, {module}.{name}, which weights do not need, and was not loaded; if you trust its '
                "maker, save its weights alone with torch.save({'state_dict': ...}, PATH)."
            )
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _named(path: Path) -> set[tuple[str, str]]:
    """Module and name of every class or function that the pickle mentions; nothing is loaded."""
    with zipfile.ZipFile(path) as archive:
        member = next((n for n in archive.namelist() if n.endswith('data.pkl')), None)
        if member is None:
            raise ValueError('it has no data.pkl')
        operations = pickletools.genops(archive.read(member))
        found = [str(arg).split(' ', 1) for op, arg, _ in operations if op.name == 'GLOBAL']  # torch reads no other
    names = set()
    for module, name in found:  # torch.save writes the names of Python 2
        new = _compat_pickle.IMPORT_MAPPING.get(module, module)
        names.add(_compat_pickle.NAME_MAPPING.get((module, name), (new, name)))
    return names


class _Empty:
    """Takes any arguments and any state, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Mapping:
    """Becomes a plain dictionary: torch fills no other kind."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}

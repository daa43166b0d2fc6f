"""Reading a checkpoint file without running what is in it."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ltzoo.errors import LtzooError, one_line

__all__ = ['ConversionError', 'read_checkpoint']


class ConversionError(LtzooError, ValueError):
    """A checkpoint file that cannot be read or converted."""


class _Unread:
    """Takes the place of an object whose class is of no use here and is not run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _harmless() -> list[Any]:
    """Return the types, beyond PyTorch's own list, that a training script's checkpoint holds and that do nothing."""
    kinds = {type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u4', 'u8', 'b1')}
    # NumPy's functions that make scalars and arrays, taken from how it pickles them.
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    makers: list[tuple[Callable[..., Any], str]] = [
        (maker, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for maker, name in ((scalar, 'scalar'), (array, '_reconstruct'))
    ]
    paths: list[tuple[type, str]] = [
        (plain, f'{module}.{name}')
        for module in ('pathlib', 'pathlib._local')
        for plain, name in ((pathlib.PurePosixPath, 'PosixPath'), (pathlib.PureWindowsPath, 'WindowsPath'))
    ]
    # The configuration object of the project template that RIDE and SADE are made from.
    config = (_Unread, 'parse_config.ConfigParser')
    return [argparse.Namespace, np.ndarray, np.dtype, *kinds, *makers, *paths, config]


class _Unpickler(pickle.Unpickler):
    """The ordinary one, but with stand-ins for classes that are not installed."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Unread


def read_checkpoint(file: Path, unsafe_pickle: bool = False) -> Any:
    """Return what a .safetensors file, or one that `torch.save` wrote, holds; tensors on the CPU.

    Args:
        file: the checkpoint.
        unsafe_pickle: also load objects of types that are not known to be harmless, which may run any code.

    Raises:
        ConversionError: if there is no such file, it is no checkpoint, or it needs a type that is not known to be
            harmless.
    """
    if not file.is_file():
        raise ConversionError(f'there is no file {file}')
    try:
        if file.suffix == '.safetensors':
            return load_file(file)
        if unsafe_pickle:
            module = types.SimpleNamespace(__name__='pickle', Unpickler=_Unpickler, load=pickle.load)
            return torch.load(file, map_location='cpu', weights_only=False, pickle_module=module)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(file, map_location='cpu', weights_only=True)
    except EOFError as error:
        raise ConversionError(f'{file} cannot be read: it is empty or ends too soon') from error
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise ConversionError(f'{file} cannot be read: {error}') from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        text = one_line(error)
        if found := re.search(r'GLOBAL (\S+)|Unsupported class (\S+)', text):
            kind = next(filter(None, found.groups()))
            raise ConversionError(
                f'{file} holds an object of type {kind}, and loading it could run code of whoever made the file: if '
                f'you trust them, say --unsafe-pickle'
            ) from error
        reason = re.split(r'\. | Check the documentation', text.rpartition('WeightsUnpickler error: ')[2])[0]
        raise ConversionError(f'{file} is no checkpoint that torch.load reads: {reason}') from error
    except Exception as error:
        # A damaged pickle can end in anything.
        raise ConversionError(f'{file} is damaged, or no checkpoint: {type(error).__name__}: {error}') from error

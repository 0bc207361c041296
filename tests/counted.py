"""Counts what is read from safetensors files, slice by slice."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from safetensors import safe_open
from torch import Tensor

from s2video.models import layout


class _CountedSlice:
    def __init__(self, name: str, whole: Any, read: Counter[str]) -> None:
        self._name, self._whole, self._read = name, whole, read

    def get_shape(self) -> list[int]:
        return list(self._whole.get_shape())

    def __getitem__(self, key: Any) -> Tensor:
        part: Tensor = self._whole[key]
        self._read[self._name] += math.prod(part.shape) * part.element_size()
        return part


class _CountedFile:
    def __init__(self, read: Counter[str], *args: Any, **kwargs: Any) -> None:
        self._read, self._opened = read, safe_open(*args, **kwargs)

    def __enter__(self) -> "_CountedFile":
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def get_slice(self, name: str) -> _CountedSlice:
        return _CountedSlice(name, self._file.get_slice(name), self._read)


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Inside, tensor names -> bytes read of them through `s2video.models.layout`, which has no other way to read."""
    read: Counter[str] = Counter()
    with mock.patch.object(layout, "safe_open", lambda *args, **kwargs: _CountedFile(read, *args, **kwargs)):
        yield read

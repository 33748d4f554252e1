"""A table of names: which PyTorch tensors one of our arrays is made of, and back.

The rows are written in ``names_*.py``; here they meet the shapes of a network and are checked.
"""

import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pokevla_jax.interop.layouts import Layout
from pokevla_jax.interop.layouts import Shape


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        ours: path of a parameter, such as ``vision/siglip/blocks/norm1/scale``.
        theirs: PyTorch's name; ``{}`` stands for a layer's number where ours is stacked over layers.
        layout: how one layer's array lies there.
        numbers: the layers' numbers in the order of our leading axes; 0, 1, ... along one leading axis if empty.
    """

    ours: str
    theirs: str
    layout: Layout
    numbers: tuple[Any, ...] = ()


Rows = tuple[Row, ...]


def under(ours: str, theirs: str, rows: Iterable[Row]) -> Rows:
    """``rows`` with both names prefixed."""
    return tuple(Row(ours + row.ours, theirs + row.theirs, row.layout, row.numbers) for row in rows)


@dataclass(frozen=True)
class Entry:
    """One parameter and the tensors that it is made of.

    Attributes:
        path: our path.
        shape: our shape, leading layer axes included.
        names: PyTorch's names, one per layer in the order of our leading axes; a single one without layers.
        torch_shape: the shape of each of the tensors.
    """

    path: str
    shape: Shape
    names: tuple[str, ...]
    torch_shape: Shape
    layout: Layout
    lead: Shape

    def from_torch(self, tensors: Iterable[np.ndarray], dtype: np.typing.DTypeLike) -> np.ndarray:
        """Our array of this dtype, contiguous, from the tensors in the order of ``names``; they may come one by one."""
        one = self.shape[len(self.lead) :]
        array = np.empty((math.prod(self.lead), *one), dtype)
        for i, tensor in zip(range(len(self.names)), tensors, strict=True):
            array[i] = self.layout.from_torch(tensor, one)
        return array.reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors' names and values, contiguous, one at a time."""
        for name, one in zip(self.names, array.reshape(-1, *self.shape[len(self.lead) :]), strict=True):
            yield name, np.ascontiguousarray(self.layout.to_torch(one)).reshape(self.torch_shape)


class Table:
    """All entries of a network, in the order of its parameters; refuses to be anything but one-to-one and complete."""

    def __init__(self, rows: Iterable[Row], shapes: Mapping[str, Shape]):
        by_path = {row.ours: row for row in rows}
        if unnamed := [path for path in shapes if path not in by_path]:
            raise ValueError(f"Parameter {unnamed[0]} has no PyTorch name; add a row to pokevla_jax/interop/names_*.py")
        self.entries = tuple(_entry(by_path[path], shape) for path, shape in shapes.items())
        self._by_name = {name: entry for entry in self.entries for name in entry.names}
        if len(self._by_name) != sum(len(entry.names) for entry in self.entries):
            raise ValueError("Two parameters share a PyTorch name; see pokevla_jax/interop/names_*.py")

    @property
    def names(self) -> tuple[str, ...]:
        """PyTorch's names."""
        return tuple(self._by_name)

    def entry_of(self, name: str) -> Entry | None:
        """The parameter that the tensor called ``name`` belongs to, or None."""
        return self._by_name.get(name)

    def torch_shapes(self) -> dict[str, Shape]:
        """PyTorch's names and shapes."""
        return {name: entry.torch_shape for name, entry in self._by_name.items()}


def _entry(row: Row, shape: Shape) -> Entry:
    if "{}" not in row.theirs:
        return Entry(row.ours, shape, (row.theirs,), row.layout.torch_shape(shape), row.layout, ())
    numbers = np.asarray(row.numbers or range(shape[0]))
    lead = shape[: numbers.ndim]
    if numbers.shape != lead:
        raise ValueError(f"{row.ours} is stacked as {lead}, and its table numbers {numbers.shape} layers")
    names = tuple(row.theirs.replace("{}", str(number)) for number in numbers.flat)
    return Entry(row.ours, shape, names, row.layout.torch_shape(shape[numbers.ndim :]), row.layout, lead)

"""Counts what a function makes MLX do: primitives executed and bytes read and written, from its exported graph.

Nothing runs, so no machine's noise is in the figures. Rules, the same for everything that is counted:

    views (reshape of contiguous data, transpose, slice, broadcast, …) launch nothing and move nothing
    a primitive reads each input once, broadcast data once, and writes its outputs
    a gather reads the rows it takes; a slice update happens in place: it reads and writes the slice
    equal subexpressions count once, as exporting merges them
    a region (`rms_norm`, `rope`, any function under `mx.compile`) is one primitive, as on a GPU, where it is one kernel
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

VIEWS = {
    "Transpose", "Broadcast", "BroadcastAxes", "ExpandDims", "Squeeze", "Slice", "Split", "Flatten", "Unflatten",
    "AsStrided", "StopGradient", "Depends", "View", "NumberOfElements",
}  # fmt: skip
PRODUCTS = {"Matmul", "AddMM", "GatherMM", "QuantizedMatmul", "GatherQMM"}
_MARK = 0x6D61726B  # first word of the constant behind a marker
Place = tuple[Any, str]  # an object and the name of the function in it


@dataclass
class Work:
    """Primitives by name, operations of matrix products by name (2 per multiply-add), bytes read and bytes written."""

    primitives: Counter = field(default_factory=Counter)
    flops: Counter = field(default_factory=Counter)
    read: int = 0
    written: int = 0

    @property
    def count(self) -> int:
        return sum(self.primitives.values())

    @property
    def moved(self) -> int:
        return self.read + self.written

    def add(self, name: str, read: int, written: int) -> None:
        if name:
            self.primitives[name] += 1
        self.read += read
        self.written += written


def count(function: Callable, *arguments: Any, regions: tuple[Place, ...] = ()) -> Work:
    """What `function(*arguments)` executes; `regions` name the functions that are one primitive each."""
    records: list[dict] = []
    with _marked(((mx.fast, "rms_norm"), (mx.fast, "rope"), *regions)) as names:
        mx.export_function(records.append, lambda *a: _arrays(function(*a)), *arguments)
    return _Counter(names).count(records)


@contextmanager
def _marked(places: tuple[Place, ...]) -> Iterator[list[str]]:
    """Puts a marker in place of each call of these functions; a marker's number is its place in the list of names."""
    names, originals = [], [(owner, name, vars(owner)[name]) for owner, name in places]

    def mark(name: str, original: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            outputs = original(*args, **options)  # for the shapes; leaves the graph unused
            markers = []
            for like in _arrays(outputs):
                names.append(name if like is _arrays(outputs)[0] else "")  # one primitive, however many outputs
                marker = mx.as_strided(mx.array([_MARK, len(names)]), like.shape, [0] * like.ndim).astype(like.dtype)
                markers.append(mx.depends([marker], _arrays(args))[0])
            return markers[0] if isinstance(outputs, mx.array) else markers

        return call

    try:
        for owner, name, original in originals:
            setattr(owner, name, mark(name, original))
        yield names
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


class _Counter:
    """Walks the records of an exported graph."""

    def __init__(self, names: list[str]):
        self.names = names
        self.work = Work()
        self.held: dict[str, int] = {}  # bytes of data behind each array
        self.scattered: set[str] = set()  # transposed: a reshape of these copies
        self.keys: dict[str, int] = {}  # number of the marker that a constant stands for
        self.markers: dict[str, int] = {}

    def count(self, records: list[dict]) -> Work:
        for record in records:
            if record["type"] == "inputs":
                self.held |= {name: _nbytes(shape, dtype) for name, shape, dtype in record["inputs"]}
            elif record["type"] == "constants":
                for name, array in record["constants"]:
                    self.held[name] = array.nbytes
                    if array.shape == (2,) and array[0].item() == _MARK:
                        self.keys[name] = array[1].item() - 1
            elif record["type"] == "primitive":
                self._primitive(record)
        return self.work

    def _primitive(self, record: dict) -> None:
        name, inputs, outputs = record["name"], record["inputs"], record["outputs"]
        source = inputs[0][0] if inputs else ""
        marker = self.keys.get(source, self.markers.get(source))
        if marker is not None:
            self._marker(name, marker, inputs, outputs)
        elif name in VIEWS or (name == "Reshape" and source not in self.scattered):
            for output, shape, dtype in outputs:
                self.held[output] = min(_nbytes(shape, dtype), self.held[source])
                if source in self.scattered or (name == "Transpose" and _moves(record)):
                    self.scattered.add(output)
        else:
            sizes = {output: _nbytes(shape, dtype) for output, shape, dtype in outputs}
            self.held |= sizes
            read, written = [self.held[i] for i, _, _ in inputs], sum(sizes.values())
            if name in ("Gather", "GatherAxis"):
                read[0] = min(read[0], written)
            if name in ("SliceUpdate", "ScatterAxis", "Scatter"):
                read, written = read[1:], sum(read[1:])
            self.work.add(name, sum(read), written)
            if name in PRODUCTS:
                self.work.flops[name] += 2 * math.prod(outputs[0][1]) * inputs[0][1][-1]

    def _marker(self, primitive: str, number: int, inputs: list, outputs: list) -> None:
        """A marker is a constant, stretched to the right shape and type and at last tied to what the function reads."""
        output, shape, dtype = outputs[0]
        if primitive != "Depends":
            self.markers[output] = number
            return
        self.held[output] = _nbytes(shape, dtype)
        name = self.names[number]
        self.work.add(name, sum(self.held[i] for i, _, _ in inputs[1:]) if name else 0, self.held[output])


def _moves(record: dict) -> bool:
    """Whether a transpose changes the order of the axes longer than 1."""
    (_, before, _), (_, after, _) = record["inputs"][0], record["outputs"][0]
    return [n for n in before if n > 1] != [n for n in after if n > 1] or before == after


def _nbytes(shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    return math.prod(shape) * dtype.size


def _arrays(tree: Any) -> list[mx.array]:
    if isinstance(tree, mx.array):
        return [tree]
    if isinstance(tree, list | tuple):
        return [a for item in tree for a in _arrays(item)]
    return []

"""One rank's part of a checkpoint's weights: of the files it reads what it keeps, and never holds a whole tensor.

Rows, and the rows of every expert, lie together. Input columns lie scattered, in pieces that may be shorter than what a
disk gives at a time; these are read past, a block of whole rows at a time, and only the columns are kept.
"""

import math
from collections.abc import Callable
from io import FileIO

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.headers import BYTES, TensorInfo
from mlx_dgemma.checkpoint.weights import FLOATS
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.cut import Slice
from mlx_dgemma.model.tensor import TensorModel

TOGETHER = 16 << 10  # bytes: pieces from here on are read one by one
BLOCK = 16 << 20  # bytes of whole rows that are read at a time
# bfloat16 is none of NumPy's types: its bits are read, and looked at as what they are
_READ_AS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "U32": "<u4", "U8": "u1"}


def fill_part(model: TensorModel, sources: dict[str, TensorInfo], dtype: mx.Dtype) -> None:
    """Reads a rank's part of the weights, one tensor after another; floats are converted to dtype."""
    weights = []
    for target, info in sources.items():
        array = read_part(info, model.cut.part(target))
        weights.append((target, array.astype(dtype) if info.dtype in FLOATS else array))
        mx.eval(weights[-1][1])
    model.load_weights(weights)


def read_part(info: TensorInfo, part: Slice | None) -> mx.array:
    """This part of a tensor, or all of it, as it is stored.

    Raises:
        DGemmaError: the file is shorter than its header says.
    """
    part = part or Slice(0, (range(1),), 1)
    shape = list(info.shape) or [1]
    ranges = part.within(shape[part.axis])
    outer, inner = math.prod(shape[: part.axis]), BYTES[info.dtype] * math.prod(shape[part.axis + 1 :])
    pieces = [range(own.start * inner, own.stop * inner) for own in ranges]  # of a row's bytes
    shape[part.axis] = sum(map(len, ranges))
    data = np.empty((outer, sum(map(len, pieces))), np.uint8)
    with info.file.open("rb", buffering=0) as stream:
        size = info.nbytes // max(outer, 1)
        read = _pieces if min(map(len, pieces)) >= TOGETHER or len(data) == 1 else _blocks
        read(_reader(stream, info), data, pieces, size)
    array = mx.array(data.reshape(-1).view(_READ_AS[info.dtype]).reshape(shape))
    return (array.view(mx.bfloat16) if info.dtype == "BF16" else array).reshape(shape if info.shape else ())


Read = Callable[[np.ndarray, int], None]  # fills an array of bytes from this one of the tensor's on


def _pieces(read: Read, data: np.ndarray, pieces: list[range], size: int) -> None:
    """Pieces of rows of `size` bytes, each by itself."""
    for number, row in enumerate(data):
        at = 0
        for piece in pieces:
            read(row[at : at + len(piece)], number * size + piece.start)
            at += len(piece)


def _blocks(read: Read, data: np.ndarray, pieces: list[range], size: int) -> None:
    """The same from blocks of whole rows."""
    count = max(1, BLOCK // max(size, 1))
    block = np.empty((min(count, len(data)), size), np.uint8)
    for start in range(0, len(data), count):
        own = block[: len(data) - start]
        read(own.reshape(-1), start * size)
        np.concatenate([own[:, p.start : p.stop] for p in pieces], axis=1, out=data[start : start + len(own)])


def _reader(stream: FileIO, info: TensorInfo) -> Read:
    def read(into: np.ndarray, start: int) -> None:
        view = into.data
        stream.seek(info.offset + start)
        while len(view):
            got = stream.readinto(view)
            if not got:
                raise DGemmaError(f"{info.file} is truncated: {info.name} ends too early; download it again")
            view = view[got:]

    return read

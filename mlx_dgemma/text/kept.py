"""Prefixes that outlive a process: a safetensors file for each conversation, in a folder of their own.

A file holds what an entry of a store does, and says of what checkpoint and of which ids. Only its owner may read it.
Files of another checkpoint, another MLX or another form, and damaged ones, are left alone and told of once.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import write_whole
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.cache import Held
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.prefixes import Entry, common

FORM = "1"  # of the files
MOST = 10 << 30  # bytes, of a folder whose size was not given
SAMPLE = 64  # numbers of each tensor that tell checkpoints apart
SUFFIX = ".prefix.safetensors"


def identity_of(model: DiffusionGemma) -> str:
    """Tells models apart: by configuration, how images are seen, some of every tensor, and the version of MLX."""
    eyes = None if model.eyes is None else (model.eyes.config, model.image_mask.__name__)
    told = hashlib.sha256(f"{FORM} {host.MLX_VERSION} {model.config!r} {eyes!r}".encode())
    for name, tensor in sorted(model.tensors().items()):
        told.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        told.update(_bytes(tensor.flatten()[:SAMPLE]))
    return told.hexdigest()


class PrefixFolder:
    """Entries on disk, for one model."""

    def __init__(
        self, folder: str | Path, model: DiffusionGemma, *, tell: Callable[[str], None], most: int = MOST
    ):  # fmt: skip
        """Makes the folder if there is none.

        Args:
            folder: of these files alone.
            model: whose prefixes they are.
            tell: gets a line for what is left alone.
            most: bytes of all files.

        Raises:
            DGemmaError: the folder cannot be made or read.
        """
        self.folder, self._model, self._tell, self._most = Path(folder).expanduser(), model, tell, most
        self.identity = identity_of(model)
        self._ids: dict[Path, tuple[int, ...]] = {}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = self._files()
        except OSError as error:
            raise DGemmaError(f"{folder}: no folder for prefixes ({error.strerror}); choose another") from None
        for file in files:
            ids = self._ids_of(file)
            if ids is not None:
                self._ids[file] = ids

    def find(self, ids: Sequence[int], better_than: int) -> Entry | None:
        """The entry that shares the most of some ids, read and checked; None if none shares more."""
        shared = {file: common(own, ids) for file, own in self._ids.items()}
        for file in sorted(shared, key=lambda file: -shared[file]):
            if shared[file] <= better_than:
                return None
            entry = self._read(file)
            if entry is None:
                del self._ids[file]
            elif entry.end_before(ids) > better_than:
                with suppress(OSError):
                    os.utime(file)
                return entry
        return None

    def save(self, entries: Sequence[Entry]) -> None:
        """Writes what is new, in the place of what it goes on from; the oldest files make room.

        Raises:
            DGemmaError: the disk is full, or the folder cannot be written to.
        """
        for entry in entries:
            ids = entry.ids[: max(entry.ends, default=0)]
            if not ids or ids in self._ids.values():
                continue
            for file, own in list(self._ids.items()):
                if common(own, entry.ids) == len(own):
                    self._drop(file)
            try:
                fits = self._make_room(entry.nbytes)
            except OSError as error:
                raise DGemmaError(f"{self.folder}: prefixes cannot be written ({error.strerror})") from None
            if fits:
                file = self.folder / (hashlib.sha256(repr(ids).encode()).hexdigest()[:32] + SUFFIX)
                self._write(file, entry)
                self._ids[file] = ids

    def _files(self) -> list[Path]:
        found = [Path(e.path) for e in os.scandir(self.folder) if e.name.endswith(SUFFIX) and e.is_file()]
        return sorted(found, key=lambda file: file.stat().st_mtime)

    def _make_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit, after the oldest files went."""
        if nbytes > self._most:
            return False
        files = self._files()
        sizes = {file: file.stat().st_size for file in files}
        while files and sum(sizes[file] for file in files) + nbytes > self._most:
            self._drop(files.pop(0))
        return True

    def _drop(self, file: Path) -> None:
        self._ids.pop(file, None)
        file.unlink(missing_ok=True)

    def _write(self, file: Path, entry: Entry) -> None:
        arrays = _arrays(entry)
        memory.finish(list(arrays.values()))
        last = max(entry.ends)
        known = {"identity": self.identity, "ids": " ".join(map(str, entry.ids[:last]))}
        known |= {"ends": " ".join(map(str, entry.ends)), "sha256": _digest(arrays)}

        def write(target: BinaryIO) -> None:
            os.fchmod(target.fileno(), 0o600)
            mx.save_safetensors(target, arrays, known)

        write_whole(file, write)

    def _ids_of(self, file: Path) -> tuple[int, ...] | None:
        """The ids of a file of this model; None, and a line, for any other."""
        loaded = self._load(file)
        if loaded is None:
            return None
        try:
            return tuple(map(int, loaded[1]["ids"].split()))
        except (KeyError, ValueError):
            self._left_alone(file, "it is damaged")
            return None

    def _load(self, file: Path) -> tuple[dict[str, mx.array], dict[str, str]] | None:
        try:
            loaded = mx.load(str(file), format="safetensors", return_metadata=True)
        except (RuntimeError, ValueError, OSError) as error:
            self._left_alone(file, first_line(error))
            return None
        assert isinstance(loaded, tuple)  # as it was asked for
        if loaded[1].get("identity") != self.identity:
            self._left_alone(file, "it is of another checkpoint or version")
            return None
        return loaded

    def _left_alone(self, file: Path, why: str) -> None:
        self._tell(f"note: {file} is left alone: {why}")

    def _read(self, file: Path) -> Entry | None:
        """An entry, if all of it is what was written."""
        loaded = self._load(file)
        if loaded is None:
            return None
        arrays, known = loaded
        try:
            ids, ends = (tuple(map(int, known[name].split())) for name in ("ids", "ends"))
            if _digest(arrays) != known["sha256"] or max(ends) != len(ids):
                raise ValueError
            return _entry(self._model, ids, ends, arrays)
        except (KeyError, ValueError, RuntimeError):
            self._left_alone(file, "it is damaged")
            return None


def _arrays(entry: Entry) -> dict[str, mx.array]:
    """An entry's arrays by name; full layers only as far as a turn's end reaches."""
    last, arrays = max(entry.ends), dict[str, mx.array]()
    for layer, held in enumerate(entry.full):
        if held is not None and held[0] is not None and held[1] is not None:
            arrays |= {f"{layer}.k": held[0][:, :, :last], f"{layer}.v": held[1][:, :, :last]}
    for end, windows in entry.ends.items():
        for layer, own in enumerate(windows):
            if own is not None and own[0] is not None and own[1] is not None:
                arrays |= {f"{layer}.{end}.k": own[0], f"{layer}.{end}.v": own[1]}
    return {name: mx.contiguous(array) for name, array in arrays.items()}


def _entry(model: DiffusionGemma, ids: tuple[int, ...], ends: tuple[int, ...], arrays: dict[str, mx.array]) -> Entry:
    """The entry of some arrays; KeyError, ValueError if they are not all there, or not of this model."""
    full: list[Held | None] = []
    windows: dict[int, list[Held | None]] = {end: [] for end in ends}
    for number, layer in enumerate(model.config.layers):
        shape, dtype = (1, layer.num_key_value_heads, layer.head_dim), model.embedding_scale.dtype
        if layer.window is None:
            full.append(_held(arrays, str(number), shape, dtype, len(ids)))
        else:
            full.append(None)
        for end in ends:
            visible = 0 if layer.window is None else min(end, layer.window - 1)
            own = None if layer.window is None else _held(arrays, f"{number}.{end}", shape, dtype, visible)
            windows[end].append(own)
    return Entry(ids, full, windows)


def _held(arrays: dict[str, mx.array], name: str, shape: tuple[int, int, int], dtype: mx.Dtype, length: int) -> Held:
    keys, values = arrays[f"{name}.k"], arrays[f"{name}.v"]
    wanted = (shape[0], shape[1], length, shape[2])
    if keys.shape != wanted or values.shape != wanted or {keys.dtype, values.dtype} != {dtype}:
        raise ValueError
    return keys, values, length


def _digest(arrays: dict[str, mx.array]) -> str:
    told = hashlib.sha256()
    for name in sorted(arrays):
        told.update(f"{name} {arrays[name].shape}".encode())
        told.update(_bytes(arrays[name]))
    return told.hexdigest()


def _bytes(array: mx.array) -> bytes:
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).tobytes()

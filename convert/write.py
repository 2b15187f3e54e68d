"""Executes a plan: streams every tensor, slice by slice, into safetensors shards."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.headers import BYTES, sha256
from mlx_dgemma.errors import DGemmaError

from .plan import Job, Output, Plan
from .target import save_record

_MX = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
Progress = Callable[[int], None]


def write_weights(plan: Plan, partial: Path, record: dict[str, Any], progress: Progress) -> None:
    """Writes the shards that are not in the record yet; each gets there, with its SHA-256, once it is on the disk."""
    done = frozenset(record["sha256"])
    for name, jobs in plan.files().items():
        if name in done:
            progress(sum(job.nbytes for job in jobs))
            continue
        write_shard(partial / name, jobs, progress)
        record["sha256"][name] = sha256(partial / name)
        save_record(partial, record)


def write_shard(path: Path, jobs: tuple[Job, ...], progress: Progress) -> None:
    """One safetensors file: the header from the plan, then each tensor slice by slice at its place."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset, starts = 0, dict[str, int]()
    for output in _outputs_by_alignment(jobs):
        starts[output.name] = offset
        header[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [offset, offset + output.nbytes],
        }
        offset += output.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        places = {name: 8 + len(text) + start for name, start in starts.items()}
        for job in jobs:
            _write_job(file.fileno(), job, places, progress)
        os.fsync(file.fileno())


def _outputs_by_alignment(jobs: tuple[Job, ...]) -> list[Output]:
    """Wide types first, as the safetensors library orders them, so that every tensor is aligned."""
    return sorted((o for job in jobs for o in job.outputs), key=lambda o: -BYTES[o.dtype])


def _write_job(descriptor: int, job: Job, places: dict[str, int], progress: Progress) -> None:
    written = dict.fromkeys((o.name for o in job.outputs), 0)
    for start, stop in job.source.runs():
        for output, array in zip(job.outputs, encode(job, start, stop), strict=True):
            data = to_bytes(array)
            written[output.name] += os.pwrite(descriptor, data, places[output.name] + written[output.name])
            progress(len(data))
    for output in job.outputs:
        if written[output.name] != output.nbytes:
            raise DGemmaError(
                f"{output.name}: {written[output.name]} bytes written of {output.nbytes}; is the disk full?"
            )


def encode(job: Job, start: int, stop: int) -> tuple[mx.array, ...]:
    """A run of rows as the job's outputs: rows are quantized independently, so runs are exact."""
    if job.is_copy:
        job.source.rows(start, stop)  # for its check of NaN and Inf
        weight, *rest = job.source.packed(start, stop)
        return weight, *(a if a.dtype == mx.uint8 else _cast(a, job) for a in rest)
    values = _cast(job.source.rows(start, stop), job)
    if job.format is None:
        return (values,)
    f = job.format
    return tuple(mx.quantize(values, f.group_size, f.bits, mode=f.mode))


def _cast(values: mx.array, job: Job) -> mx.array:
    values = values.astype(_MX[job.dtype])
    if not mx.isfinite(values).all().item():
        raise DGemmaError(f"tensor {job.source.origin} has values too large for {job.dtype}; choose another --dtype")
    return values


def to_bytes(array: mx.array) -> memoryview:
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).data.cast("B")

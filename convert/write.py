"""Executes a plan: streams every tensor into safetensors shards beside the target, and renames at the end.

A killed run leaves `TARGET.partial` with the finished shards and their checksums; `resume` goes on from there.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dgemma.checkpoint.headers import BYTES, sha256
from mlx_dgemma.errors import DGemmaError

from .plan import Job, Output, Plan

STATE = "state.json"
MARGIN = 100_000_000  # bytes beyond the weights: tokenizer and file system
_MX = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
Progress = Callable[[int], None]


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def prepare(plan: Plan, source: Path, target: Path, *, resume: bool, force: bool) -> dict[str, str]:
    """Checks target, disk and leftovers; returns the finished shards of an earlier run with their SHA-256."""
    partial = partial_of(target)
    _check_target(source.resolve(), target, force)
    if resume and not partial.exists():
        raise DGemmaError(f"nothing to resume: {partial} does not exist; run without --resume")
    if partial.exists() and not resume and not force:
        raise DGemmaError(f"{partial} is left from a run that ended early; add --resume, or --force to start again")
    done = _finished(partial, plan) if resume else {}
    if not done:
        shutil.rmtree(partial, ignore_errors=True)
    sizes = {name: sum(job.nbytes for job in jobs) for name, jobs in named_shards(plan).items()}
    needed = sum(size for name, size in sizes.items() if name not in done) + MARGIN
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DGemmaError(f"{target.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; make room")
    partial.mkdir(exist_ok=True)
    return done


def _check_target(source: Path, target: Path, force: bool) -> None:
    """Only a model folder is ever replaced, and never the one that is being read."""
    if not target.exists():
        return
    if target.resolve() in (source, *source.parents):
        raise DGemmaError(f"{target} holds the source; choose another --mlx-path")
    if not force:
        raise DGemmaError(f"{target} exists; choose another --mlx-path, or replace it with --force")
    if not (target / "config.json").is_file():
        raise DGemmaError(f"{target} is not a model folder; choose another --mlx-path, or remove it yourself")


def _finished(partial: Path, plan: Plan) -> dict[str, str]:
    """The shards of an earlier run of this plan that are still what they were."""
    try:
        state = json.loads((partial / STATE).read_text())
        begun, done = state["fingerprint"], dict(state["done"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    if begun != plan.fingerprint():
        raise DGemmaError(f"{partial} was begun with another source or other options; repeat them, or use --force")
    return {
        name: digest for name, digest in done.items() if (partial / name).is_file() and sha256(partial / name) == digest
    }


def named_shards(plan: Plan) -> dict[str, tuple[Job, ...]]:
    shards = plan.shards()
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": jobs for i, jobs in enumerate(shards)}


def write_weights(plan: Plan, target: Path, done: dict[str, str], progress: Progress) -> dict[str, str]:
    """Writes the shards that are not done yet and the index; returns the SHA-256 of every shard."""
    partial, shards = partial_of(target), named_shards(plan)
    sums = dict(done)
    for name, jobs in shards.items():
        if name in done:
            progress(sum(job.nbytes for job in jobs))
            continue
        write_shard(partial / name, jobs, progress)
        sums[name] = sha256(partial / name)
        write_json(partial / STATE, {"fingerprint": plan.fingerprint(), "done": sums})
    weight_map = {output.name: name for name, jobs in shards.items() for job in jobs for output in job.outputs}
    index = {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(partial / "model.safetensors.index.json", index)
    return sums


def write_shard(path: Path, jobs: tuple[Job, ...], progress: Progress) -> None:
    """One safetensors file: the header from the plan, then each tensor slice by slice at its place."""
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for output in _outputs_by_alignment(jobs):
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
        file.truncate(8 + len(text) + offset)
        places = {o.name: 8 + len(text) + header[o.name]["data_offsets"][0] for job in jobs for o in job.outputs}
        for job in jobs:
            _write_job(file.fileno(), job, places, progress)
        file.flush()
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
    return memoryview(np.ascontiguousarray(np.array(array, copy=False))).cast("B")


def write_json(path: Path, content: Any) -> None:
    """In one move: a reader sees the old file or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def publish(target: Path) -> None:
    """The finished folder takes the target's name; an old target goes only then."""
    partial, old = partial_of(target), target.with_name(f".{target.name}.{os.getpid()}.old")
    (partial / STATE).unlink(missing_ok=True)
    replaces = target.exists()
    if replaces:
        target.rename(old)
    partial.rename(target)
    if replaces:
        shutil.rmtree(old)

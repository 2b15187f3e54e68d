"""The target's place: one converter at a time, what earlier runs left there, and how the result takes its name.

A run works in `TARGET.partial` and renames it at the end: a kill leaves the old target, the new one, or a folder from
which `resume` goes on. Its convert.json is there before anything else and lists finished shards and their checksums.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_dgemma.checkpoint.headers import sha256
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import read_file

from .plan import Plan

RECORD = "convert.json"
MARGIN = 100_000_000  # bytes beyond the weights: tokenizer and file system


def target_of(path: str) -> Path:
    """The folder that --mlx-path means: absolute, links followed, as the folder behind a link is what gets replaced."""
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if not target.name:
        raise DGemmaError(f"{target} cannot be a target; give --mlx-path a folder that does not exist yet")
    return target


def partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def replaced_of(target: Path) -> Path:
    """Where an old target waits until the new one has its name."""
    return target.with_name(f".{target.name}.replaced")


def check_apart(source: Path, target: Path) -> None:
    """Refuses a target that holds the source or a file that it links to, and one inside the source."""
    # unlike Path's own, it takes a link to itself as it is
    files = [Path(os.path.realpath(file)) for file in (source, *source.iterdir())]
    places = (target, partial_of(target), replaced_of(target))
    if any(_is_within(file, place) for file in files for place in places):
        raise DGemmaError(f"{target} holds the source; choose another --mlx-path")
    if _is_within(target, source):
        raise DGemmaError(f"{target} is inside the source's folder; choose another --mlx-path")


def _is_within(path: Path, folder: Path) -> bool:
    """By what the file system says is the same folder, not by spelling."""
    return folder.exists() and any(p.exists() and p.samefile(folder) for p in (path, *path.parents))


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other converters away from the target, and puts right what a killed one left half renamed.

    The lock ends with the process, however that ends; a file that stays behind locks nothing.
    """
    path = target.with_name(f".{target.name}.lock")
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            others = not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except BlockingIOError:
            others = True
        except OSError:  # a file system without locks
            others = False
        if others:  # who runs, or has just ended and removed the file that we opened
            raise DGemmaError(f"another conversion is writing {target}; wait for it, or choose another --mlx-path")
        try:
            recover(target)
            yield
        finally:
            path.unlink(missing_ok=True)


def prepare(plan: Plan, record: dict[str, Any], target: Path, *, resume: bool, force: bool) -> None:
    """Checks target, disk and leftovers, and begins the partial folder.

    Args:
        record: convert.json as it will be; gets the sums of the shards that an earlier run finished.
    """
    partial = partial_of(target)
    _check_target(target, force)
    record["sha256"] = done = _finished(partial, plan, record["fingerprint"], resume=resume, force=force)
    rubbish = [f for f in partial.iterdir() if f.name not in (RECORD, *done)] if partial.exists() else []
    needed = sum(job.nbytes for name, jobs in plan.files().items() if name not in done for job in jobs) + MARGIN
    free = shutil.disk_usage(target.parent).free + sum(512 * file.lstat().st_blocks for file in rubbish)
    if needed > free:
        raise DGemmaError(f"{target.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; make room")
    partial.mkdir(exist_ok=True)
    save_record(partial, record)  # before anything goes: a folder without it is not ours
    for file in rubbish:
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def _check_target(target: Path, force: bool) -> None:
    """Only a model folder is ever replaced."""
    if not target.exists():
        return
    if not force:
        raise DGemmaError(f"{target} exists; choose another --mlx-path, or replace it with --force")
    if not (target / "config.json").is_file():
        raise DGemmaError(f"{target} is not a model folder; choose another --mlx-path, or remove it yourself")


def _finished(partial: Path, plan: Plan, fingerprint: str, *, resume: bool, force: bool) -> dict[str, str]:
    """The shards of an earlier run of this plan that are still what they were, with their SHA-256."""
    if not partial.exists():
        return {}
    if not resume and not force:
        raise DGemmaError(f"{partial} is left from a run that ended early; add --resume, or --force to start again")
    if not _is_ours(partial):
        raise DGemmaError(f"{partial} is not what a conversion leaves; move it away")
    record = read_record(partial)
    if not resume or not record:
        return {}
    if record["fingerprint"] != fingerprint:
        if force:
            return {}
        raise DGemmaError(f"{partial} was begun with another source or other options; repeat them, or use --force")
    files = plan.files()
    return {
        name: digest
        for name, digest in record["sha256"].items()
        if name in files and (partial / name).is_file() and sha256(partial / name) == digest
    }


def _is_ours(partial: Path) -> bool:
    """What a conversion leaves is empty, or it has the record."""
    names = {file.name for file in partial.iterdir()} if partial.is_dir() else {"a file"}
    return not names or not names.isdisjoint((RECORD, f"{RECORD}.new"))


def read_record(folder: Path) -> dict[str, Any]:
    """A folder's convert.json; {} if there is none that this version wrote."""
    try:
        record = json.loads(read_file(folder / RECORD).decode("utf-8"))
        return record if record["fingerprint"] and isinstance(record["sha256"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """In one move, and on the disk when this returns: a reader sees the old file or the new one."""
    fresh = folder / f"{RECORD}.new"
    fresh.write_bytes(as_json({**record, "sha256": dict(sorted(record["sha256"].items()))}))
    sync(fresh)
    fresh.replace(folder / RECORD)


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def publish(target: Path) -> None:
    """The finished folder takes the target's name; an old target goes only then."""
    partial, replaced = partial_of(target), replaced_of(target)
    for file in (*partial.iterdir(), partial):
        sync(file)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)  # killed just before: `recover`
    sync(target.parent)
    _remove(replaced)


def discard(target: Path, fingerprint: str) -> None:
    """Removes what is left of a run whose result is there already."""
    partial, replaced = partial_of(target), replaced_of(target)
    if read_record(partial).get("fingerprint") == fingerprint:
        partial.rename(replaced)
        _remove(replaced)


def recover(target: Path) -> None:
    """Ends what a run that was killed in `publish` began."""
    partial, replaced = partial_of(target), replaced_of(target)
    if not replaced.exists():
        return
    if not target.exists():
        whole = [folder for folder in (partial, replaced) if (folder / "config.json").is_file()]
        for folder in whole[:1]:
            folder.rename(target)
    _remove(replaced)


def _remove(folder: Path) -> None:
    """Deletes a model folder; what has no config.json is the rest of one."""
    if folder.exists():
        (folder / "config.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # for folders some file systems cannot do it
            raise
    finally:
        os.close(descriptor)

"""Converts a synthetic checkpoint of several GB and prints peak resident memory and MB/s.

python -m benchmarks.convert --gigabytes 6 --recipe mlx-community

The checkpoint has the published shapes with fewer layers: its largest tensor is the real model's largest (1.5 GB).
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mlx_dgemma.checkpoint.headers import BYTES, VISION

DATA = Path(__file__).parent.parent / "tests" / "data"
PIECE = 2**24  # bytes of random weights written at a time


def published_tensors(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the text tensors with the last `layers` layers (the last one has full attention)."""
    tensors = []
    for line in (DATA / "tensors.tsv").read_text().splitlines()[1:]:
        name, _, shape, _ = line.split("\t")
        pieces = name.split(".")
        if VISION.fullmatch(name):
            continue
        if "layers" in pieces:
            place = pieces.index("layers") + 1
            index = int(pieces[place]) - (30 - layers)
            if index < 0:
                continue
            pieces[place] = str(index)
        tensors.append((".".join(pieces), tuple(map(int, shape.split(",")))))
    return tensors


def write_source(folder: Path, gigabytes: float) -> tuple[int, int]:
    """Random bfloat16 weights of at least this size; returns the bytes in all and those of the largest tensor."""
    layers = next(n for n in range(1, 31) if _nbytes(published_tensors(n)) >= gigabytes * 1e9)
    tensors, header, offset = published_tensors(layers), {}, 0
    for name, shape in tensors:
        end = offset + BYTES["BF16"] * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    config = json.loads((DATA / "config.json").read_text())
    text = config["text_config"]
    text["num_hidden_layers"], text["layer_types"] = layers, text["layer_types"][-layers:]
    (folder / "config.json").write_text(json.dumps(config))
    encoded = json.dumps(header).encode()
    # float32 normals cut to their upper halves are bfloat16
    piece = np.random.default_rng(0).normal(0, 0.02, PIECE // 2).astype(np.float32).view(np.uint16)[1::2].tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for start in range(0, offset, PIECE):
            file.write(piece[: min(PIECE, offset - start)])
    return offset, max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


def _nbytes(tensors: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(BYTES["BF16"] * int(np.prod(shape)) for _, shape in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--recipe", default="mlx-community")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        total, largest = write_source(source, args.gigabytes)
        command = [sys.executable, "-m", "convert", "--hf-path", source, "--mlx-path", Path(folder) / "target"]
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--recipe", args.recipe])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        sys.exit("the conversion failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux KiB
    print(f"source {total / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, recipe {args.recipe}")
    print(f"{seconds:.0f} s, {total / seconds / 1e6:.0f} MB/s of source")
    print(f"peak resident memory {peak / 1e6:.0f} MB (bound {(1.5 * largest + 500e6) / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()

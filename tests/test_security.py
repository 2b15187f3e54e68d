"""Nothing that comes from elsewhere is run: no pickle is ever opened, no source evaluated, no other format loaded."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.__main__ import main as convert
from mlx_dgemma import DGemmaError, Engine, load
from mlx_dgemma.report.__main__ import main as report
from mlx_dgemma.trace import load_trace
from tests.fuzz import small

ROOT = Path(__file__).parent.parent
SOURCES = sorted(file for package in ("mlx_dgemma", "convert") for file in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code", "codeop", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
LOADERS = {"torch.load", "np.load", "numpy.load", "mx.load", "pickle.load", "pickle.loads", "np.fromfile", "os.system"}
TRAINS = ROOT / "mlx_dgemma" / "demo" / "training.py"  # it needs torch, and reads no file with it
TRAINING = ("training", "workers", "batches", "optimizer", "evaluate", "train")


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty for another."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]


def faults(source: str) -> list[str]:
    """What a source does that none of ours may do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
        allowed = {
            "np.load": options.get("allow_pickle") == "False",
            "mx.load": options.get("format") == "'safetensors'",
        }
        if name in CALLS or (name in LOADERS and not allowed.get(name, False)):
            found.append(f"calls {name}")
        if options.get("shell", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            found.append(f"calls {name} with {options}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_opens_what_can_run(file):
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml as y", "eval('1')", "np.load(f)", "torch.load(f)",
        "np.load(f, allow_pickle=True)", "mx.load(f)", "run(c, shell=True)", "mx.load(f, format='npz')", "os.system(c)",
    ],
)  # fmt: skip
def test_the_walk_sees_them(source):
    assert faults(source)


def test_torch_reads_no_file():
    assert not [call for call in calls(TRAINS) if dotted(call.func).endswith((".load", ".from_file"))]
    users = [file for file in SOURCES if "torch" in {name.split(".")[0] for name in imported(file)}]
    assert set(users) <= {TRAINS.with_name(f"{name}.py") for name in TRAINING}


def imported(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


class Payload:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def opened(tmp_path) -> Path:
    """The file that a payload makes; the test fails if it is there in the end."""
    probe = tmp_path / "probe"
    pickle.loads(pickle.dumps(Payload(probe)))
    assert probe.exists()  # it would be made
    file = tmp_path / "opened"
    yield file
    assert not file.exists(), "a payload was unpickled"


@pytest.mark.parametrize("name", ["about", "canvas", "prompt_ids", "seconds", "more"])
def test_a_trace_with_pickled_objects_is_refused_unopened(opened, tmp_path, capsys, name):
    path = tmp_path / "run.npz"
    arrays = {"about": np.frombuffer(json.dumps({"format": "mlx-dgemma trace", "version": 1}).encode(), np.uint8)}
    np.savez(path, **arrays | {name: np.array([Payload(opened)], dtype=object)})
    with pytest.raises(DGemmaError):
        load_trace(path)
    assert report([str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_trace_that_is_a_pickle_is_refused_unopened(opened, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(pickle.dumps(Payload(opened)))
    with pytest.raises(DGemmaError, match="is not a trace"):
        load_trace(path)


NAMES = (
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "model.safetensors.bin",
    "weights.npz",
    "scheduler.pkl",
    "a.ckpt",
)


@pytest.fixture
def hostile(opened, tmp_path) -> Path:
    """A good checkpoint with pickles beside it."""
    folder = small.copy(tmp_path)
    for name in NAMES:
        (folder / name).write_bytes(pickle.dumps(Payload(opened)))
    (folder / "tokenization_gemma.py").write_text(f"open({str(opened)!r}, 'w')")
    (folder / "config.json").write_text(
        json.dumps({**small.CONFIG, "auto_map": {"AutoModel": "tokenization_gemma.Model"}, "trust_remote_code": True})
    )
    return folder


def test_pickles_beside_a_checkpoint_are_left_alone(hostile):
    assert Engine.load(hostile).generate(small.REQUEST).text == small.text()


def test_pickles_are_not_converted(hostile, tmp_path):
    assert convert(["--hf-path", str(hostile), "--mlx-path", str(tmp_path / "target")]) == 0
    assert not {file.name for file in (tmp_path / "target").iterdir()} & {*NAMES, "tokenization_gemma.py"}


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_checkpoint_of_pickles_alone_is_refused(hostile, tmp_path, name):
    (hostile / "model.safetensors").unlink()
    with pytest.raises(DGemmaError, match=r"no \.safetensors file"):
        load(hostile)
    shutil.copy(hostile / name, hostile / "model.safetensors")  # under the right name it is none
    with pytest.raises(DGemmaError, match="download it again"):
        load(hostile)
    index = {"weight_map": {"model.decoder.norm.weight": name}}
    (hostile / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DGemmaError, match="names"):
        load(hostile)
    assert convert(["--hf-path", str(hostile), "--mlx-path", str(tmp_path / "target")]) == 1


def test_npz_weights_under_the_name_of_safetensors_are_refused(opened, tmp_path):
    folder = small.copy(tmp_path)
    with (folder / "model.safetensors").open("wb") as file:
        np.savez(file, **{"model.decoder.norm.weight": np.array([Payload(opened)], dtype=object)})
    with pytest.raises(DGemmaError):
        load(folder)

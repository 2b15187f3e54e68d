"""A sound checkpoint keeps a finished canvas; a damaged one, a wrong kernel and a file that was cut do not."""

import json

import mlx.core as mx
import pytest

from mlx_dgemma import DGemmaError, Engine, load
from mlx_dgemma.bench import environment as surroundings
from mlx_dgemma.bench.__main__ import main
from mlx_dgemma.bench.check import check


def test_the_embedded_checkpoint_is_sound(capsys):
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == "64 of 64 tokens of a canvas stay after one more step (it took 2)\n"
    assert main(["--check", "--json", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["is_sound"] is True


def test_damaged_weights_are_not():
    model, tokenizer = load()
    shuffle = mx.random.permutation(mx.arange(model.config.hidden_size), key=mx.random.key(0))
    for layer in model.model.decoder.layers:  # rows in another order: a shape and a norm that look right
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight[shuffle]
        layer.self_attn.o_proj.weight = layer.self_attn.o_proj.weight[shuffle]
    found = check(Engine(model, tokenizer, "embedded"))
    assert not found.is_sound and found.kept < 0.9 * found.tokens


def test_the_command_line_says_what_to_do(monkeypatch, capsys):
    from mlx_dgemma.bench import check as module

    monkeypatch.setattr(module, "LEAST", 1.1)
    assert main(["--check"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: the checkpoint is damaged or computed wrongly here") and err.count("\n") == 1


def test_it_needs_a_tokenizer(model):
    with pytest.raises(DGemmaError, match="no tokenizer files"):
        check(Engine(model, None))


@pytest.mark.parametrize(
    ("pmset", "mode"),
    [
        (" lowpowermode         1\n", "low"),
        (" powermode            1\n", "low"),
        (" powermode            2\n", "high"),
        (" lowpowermode         0\n highpowermode 1\n", "high"),
        (" lowpowermode         0\n", "automatic"),
    ],
)
def test_a_macs_power_mode(monkeypatch, pmset, mode):
    class Done:
        stdout = pmset

    monkeypatch.setattr(surroundings.subprocess, "run", lambda *a, **k: Done)
    assert surroundings.environment()["power"] == mode


def test_mlx_switches_and_accelerators_are_told(monkeypatch):
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "100")
    assert surroundings.environment()["MLX switches"] == "MLX_MAX_MB_PER_BUFFER=100"
    assert surroundings._accelerators("applegpu_g17s", "26.2") == "used"
    for architecture, macos in [("applegpu_g17s", "26.1"), ("applegpu_g16s", "27")]:
        assert surroundings._accelerators(architecture, macos) == "none"
    assert surroundings._accelerators("x86_64", "") == ""

"""Reading labels from a steered canvas, against whole logits; the command line's --choose and --num-samples."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest

from mlx_dgemma import choose, load
from mlx_dgemma.diffusion.noise import SeededNoise
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.text.prompts import prompt_ids
from mlx_dgemma.text.shortcuts import choose_each
from tests.command import in_process


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_labels_need_a_tokenizer(embedded):
    with pytest.raises(DGemmaError, match=r"^labels are texts, and the checkpoint has no tokenizer files; add tok"):
        choose(embedded[0], None, [2, 4], "{?}", ["yes", "no"])


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def by_the_book(embedded, prompt, labels, before="", after=""):
    """One slot, one draw: whole canvases, whole logits."""
    model, tokenizer = embedded
    noise = np.array(SeededNoise(0, model.config.vocab_size).tokens((1, 64)))[0]
    end, pad = model.generation_config.eos_token_id[0], tokenizer.pad_token_id
    canvases = [[*ids_of(tokenizer, before + label + after), end] for label in labels]
    canvases = np.array([canvas + [pad] * (64 - len(canvas)) for canvas in canvases])
    differs = (canvases != canvases[0]).any(axis=0)
    cache = model.make_cache()
    model.encode(mx.array([prompt_ids(tokenizer, prompt)]), cache)
    logits = model.denoise(mx.array(np.where(differs, noise, canvases[0])[None]), cache)[0]
    log_p = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
    scores = np.array([sum(log_p[i, canvas[i]] for i in np.flatnonzero(differs)) for canvas in canvases])
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


@pytest.mark.parametrize(
    ("prompt", "before", "labels", "after"),
    [
        ("upper xyz", "X", ["Q", "Z", "Y"], "Z"),  # one token
        ("spell 1842", "one thousand eight hundred ", ["fifty", "forty"], "-two"),
        ("spell 1842", "one ", ["thousand", "hundred", "t"], " eight"),  # lengths differ, so what follows is read too
        ("reverse abcd", "", ["dcba", "dcb", "dcbaa"], ""),
    ],
)
def test_by_the_book(embedded, prompt, before, labels, after):
    got = choose(*embedded, prompt, f"{before}{{?}}{after}", labels)
    assert list(got) == labels and sum(got.values()) == pytest.approx(1)
    np.testing.assert_allclose(list(got.values()), by_the_book(embedded, prompt, labels, before, after), atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "template", "labels", "right"),
    [
        ("spell 1842", "one thousand eight hundred {?}-two", ["fifty", "forty", "sixty"], ["forty"]),
        ("upper abc", "{?}", ["ABX", "AB", "ABC", "ABCC"], ["ABC"]),
        ("sudoku 1..4..1.2....3.1", "12343{?}12214{?}4321", ["1", "2", "3", "4"], ["4", "3"]),
    ],
)
def test_the_right_label_wins_in_every_slot_in_any_order_with_any_draws(embedded, prompt, template, labels, right):
    for order in (labels, labels[::-1]):
        for draws in (1, 3):
            slots = choose_each(*embedded, prompt, template, [order] * len(right), draws=draws)
            assert [max(slot, key=slot.get) for slot in slots] == right
            assert all(max(slot.values()) > 0.9 for slot in slots)


def test_one_denoiser_pass_over_one_prefill_for_all_slots(embedded, monkeypatch):
    passes, encode, denoise = [], DiffusionGemma.encode, DiffusionGemma.denoise_hidden
    monkeypatch.setattr(DiffusionGemma, "encode", lambda s, ids, c: passes.append(ids.shape[0]) or encode(s, ids, c))
    monkeypatch.setattr(
        DiffusionGemma, "denoise_hidden", lambda s, ids, c: passes.append(ids.shape) or denoise(s, ids, c)
    )
    choose_each(*embedded, "upper abc", "{?}B{?}", [["A", "C"], ["B", "C"]])
    assert passes == [1, (1, 64)]  # labels of equal length: the slots share a row
    passes.clear()
    choose_each(*embedded, "upper abc", "{?}B{?}", [["A", "CC"], ["A", "C"]])
    assert passes == [1, (2, 64)]


@pytest.mark.parametrize(
    ("template", "labels", "draws", "complaint"),
    [
        ("A", ["B", "C"], 1, "it has 0 slots {?} for 1 lists"),
        ("{?}{?}", ["B", "C"], 1, "it has 2 slots {?} for 1 lists"),
        ("{?}{}", ["B", "C"], 1, "needs an end"),
        ("{?}", ["B"], 1, "give two labels or more"),
        ("{?}", "BC", 1, "give two labels or more"),
        ("{?}", ["B", " "], 1, "label 2 is ' '"),
        ("{?}", ["B", "C", "B"], 1, "label 'B' is given twice"),
        ("{?}", ["B", "C" * 64], 1, "it has 64 tokens, one canvas holds 63"),
        ("{?}", ["B", "C"], 0, "draws must be an integer from 1 on"),
    ],
)
def test_mistakes(embedded, template, labels, draws, complaint):
    with pytest.raises(DGemmaError, match=re.escape(complaint)):
        choose(*embedded, "upper abc", template, labels, draws=draws)


# The command line


def test_choose_on_the_command_line(capsys):
    code, out, err = in_process(capsys, "--prompt", "upper abc", "--choose", "ABX, ABC", "--quiet")
    assert (code, err) == (0, "") and [line.split("\t")[1] for line in out.splitlines()] == ["ABX", "ABC"]
    assert float(out.splitlines()[1].split("\t")[0]) > 0.99
    _, out, _ = in_process(capsys, "--prompt", "upper abc", "--choose", "A,C", "--template", "{?}B{?}", "--json")
    first, second = json.loads(out)["choices"]
    assert first["A"] > 0.9 and second["C"] > 0.9
    _, out, _ = in_process(capsys, "--prompt", "upper abc", "--choose", "A,C", "--template", "{?}B{?}")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["1", "1", "2", "2"]


def test_samples_on_the_command_line(capsys):
    code, out, err = in_process(capsys, "--prompt", "roman 3", "--num-samples", "3", "--seed", "5")
    assert code == 0 and out == "III\n" * 3 and sorted(err.split("seed ")[i][0] for i in (1, 2, 3)) == ["5", "6", "7"]
    code, out, err = in_process(capsys, "--prompt", "roman 3", "--num-samples", "2", "--json", "--quiet")
    samples = json.loads(out)
    assert code == 0 and err == "" and {sample["seed"] for sample in samples} == {0, 1}
    assert samples[0]["mean_log_p"] >= samples[1]["mean_log_p"] and samples[0]["text"] == "III"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--choose", "a,b", "--watch"], 2, "--choose does not go with --watch"),
        (["--choose", "a,b", "--init", "c"], 2, "--choose does not go with --init"),
        (["--choose", "a,b", "--num-samples", "2"], 2, "--choose does not go with --num-samples"),
        (["--num-samples", "2", "--trace", "x.npz"], 2, "--num-samples does not go with --trace"),
        (["--num-samples", "0"], 2, "--num-samples must be at least 1"),
        (["--choose", "a"], 1, "give two labels or more"),
        (["--template", "{?}"], 1, "{?} is a slot to choose a label for"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, code, complaint):
    got, out, err = in_process(capsys, "--prompt", "upper abc", *arguments)
    assert got == code and out == "" and complaint in err and err.count("\n") == 1

"""One request, one engine: every way to ask gives the same, and what does not go together is refused by name."""

import dataclasses
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

import mlx_dgemma
from mlx_dgemma import CanvasPlan, DGemmaError, Engine, GenerationConfig, Request
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.text.shortcuts import choose_each, generate_samples, generate_text, stream_generate, stream_samples
from mlx_dgemma.text.template import parse_draft, parse_template
from tests.conftest import ReplayedNoise

SUDOKU = "sudoku 1..4..1.2....3.1"


@pytest.fixture(scope="module")
def engine():
    return Engine.load()


def plain(event):
    """An event as values that can be compared, without times."""
    if not isinstance(event, DenoisingStep):
        return (event.canvas, event.tokens, event.text, event.steps, event.finish_reason)
    fields = (getattr(event, f.name) for f in dataclasses.fields(event))
    return [np.array(value).tolist() if isinstance(value, mx.array) else value for value in fields]


def test_the_shortcuts_are_the_engine(engine):
    pair, settings = (engine.model, engine.tokenizer), GenerationConfig(entropy_bound=0.3, max_new_tokens=64)
    request = Request(SUDOKU, settings=settings, seed=4, canvas="1{14}1{}", chat_template=False)
    given = {"seed": 4, "canvas": "1{14}1{}", "chat_template": False}
    ours, theirs = engine.stream(request), stream_generate(*pair, SUDOKU, settings, **given)
    assert list(map(plain, ours)) == list(map(plain, theirs))
    assert engine.generate(request).tokens == generate_text(*pair, SUDOKU, settings, **given).tokens
    several = dataclasses.replace(request, samples=3)
    ours, theirs = engine.samples(several), generate_samples(*pair, SUDOKU, settings, n=3, **given)
    assert [(s.seed, s.mean_log_p, s.result.text) for s in ours] == [
        (s.seed, s.mean_log_p, s.result.text) for s in theirs
    ]
    steps = [e for e in stream_samples(*pair, SUDOKU, settings, n=3, **given) if isinstance(e, DenoisingStep)]
    assert [plain(e) for e in engine.stream_samples(several) if isinstance(e, DenoisingStep)] == list(map(plain, steps))
    template, labels = "12343{?}12214{?}4321", [["2", "3", "4"]] * 2
    slots = engine.choose_each(Request(SUDOKU, seed=2), template, labels)
    assert slots == choose_each(*pair, SUDOKU, template, labels, seed=2)
    one = engine.choose(Request(SUDOKU, seed=2), "12343{?}12214{4}4321", labels[0], draws=2)
    assert max(one, key=one.get) == "4"


def test_a_noise_source_of_ones_own_reaches_the_sampler(engine):
    request = Request(SUDOKU, noise=ReplayedNoise(3, 100))
    assert engine.generate(request).text == engine.generate(Request(SUDOKU, noise=ReplayedNoise(3, 100))).text
    assert request.noise.draws[:3] == ["tokens", "uniform", "tokens"]


def test_texts_in_a_plan_are_what_their_token_ids_are(engine):
    stops, tokenizer = engine.model.generation_config.eos_token_id, engine.tokenizer
    given = parse_template(tokenizer, "{12} eight hundred {9}", stops, 64)
    draft = parse_draft(tokenizer, "one hundred", stops, 64)
    as_ids = engine.generate(Request("spell 1842", canvas=CanvasPlan(given, draft, 0.5, 7)))
    as_text = engine.generate(Request("spell 1842", canvas=CanvasPlan("{12} eight hundred {9}", "one hundred", 0.5, 7)))
    assert as_ids.canvases == as_text.canvases and as_ids.text == "one thousand eight hundred forty-two"
    with pytest.raises(DGemmaError, match="no tokenizer files"):
        Engine(engine.model, None).prepare(Request([5], canvas="one {}"))


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda e: e.stream(Request("roman 3", samples=2)), "2 samples; use samples or stream_samples"),
        (lambda e: e.generate(Request("roman 3", samples=2)), "2 samples"),
        (lambda e: e.samples(Request("roman 3", noise=ReplayedNoise(0))), "leave noise out of the request"),
        (lambda e: e.choose(Request("roman 3", canvas="{}"), "{?}", ["a", "b"]), "leave canvas and samples out"),
        (lambda e: e.choose(Request("roman 3", samples=2), "{?}", ["a", "b"]), "leave canvas and samples out"),
        (lambda e: Request("roman 3", settings={"t_min": 0.1}), "settings are a dict; give a GenerationConfig"),
        (lambda e: Request("roman 3", settings=None), "settings are a NoneType"),
        (lambda e: Request("roman 3", seed=None), "seed must be an integer from 0 to 2"),
        (lambda e: Request("roman 3", seed=-1), "seed must be an integer"),
        (lambda e: Request("roman 3", samples=True), "number of samples must be an integer from 1 on, got True"),
        (lambda e: e.prepare(Request("x" * 5000)), "max_position_embeddings"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(engine, ask, complaint):
    with pytest.raises(DGemmaError, match=complaint) as error:
        ask(engine)
    assert "\n" not in str(error.value)


def test_a_request_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("roman 3").seed = 4


def test_an_engine_knows_its_checkpoint(engine, folder):
    assert engine.checkpoint == "embedded"
    loaded = Engine.load(folder)
    assert loaded.checkpoint == str(folder) and loaded.tokenizer is None
    assert loaded.generate(Request([1, 2], settings=GenerationConfig(max_denoising_steps=1))).tokens


def test_public_names_are_listed_and_no_module_hides_one():
    assert set(mlx_dgemma.__all__) <= set(dir(mlx_dgemma))
    # a submodule of that name would take its place once it is imported
    code = "import mlx_dgemma, pkgutil\n"
    code += "assert not {m.name for m in pkgutil.iter_modules(mlx_dgemma.__path__)} & set(mlx_dgemma.__all__)\n"
    code += "assert all(callable(getattr(mlx_dgemma, name)) for name in mlx_dgemma.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_needs_nothing_heavy():
    code = "import sys; from mlx_dgemma import CanvasPlan, GenerationConfig, Request; Request('x', canvas='{}')\n"
    code += "assert not {'mlx', 'numpy', 'tokenizers', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The engine: a model, its tokenizer and the checkpoint's name, and what can be asked of them.

engine = Engine.load("folder-or-hub-repo")
print(engine.generate(Request("Why is the sky blue?", seed=7)).text)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx

from mlx_dgemma.checkpoint.loading import load
from mlx_dgemma.checkpoint.tokenizer import Tokenizer
from mlx_dgemma.diffusion.events import DenoisingStep
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.text import choose as choice
from mlx_dgemma.text.events import GenerationResult, Sample, TextCanvas, collect
from mlx_dgemma.text.generation import stream_text
from mlx_dgemma.text.prefixes import PrefixStore
from mlx_dgemma.text.request import MAX_ROWS, Request
from mlx_dgemma.text.run import Run, prepare
from mlx_dgemma.text.samples import stream_batch
from mlx_dgemma.text.scheduler import stream_many
from mlx_dgemma.text.score import Score, score_text
from mlx_dgemma.text.turns import Turns


@dataclass(frozen=True, eq=False)
class Engine:
    """What answers requests.

    Attributes:
        model: as `load` gives it.
        tokenizer: None for a checkpoint without tokenizer files: token ids in, token ids out.
        checkpoint: the folder or hub repository, or "embedded".
        prefixes: remembers prompts that were encoded, so that the next turn encodes only what is new; None does not.
        turns: the last ones that ended in calls; their own tokens stand in prompts that go on behind them.
    """

    model: DiffusionGemma
    tokenizer: Tokenizer | None
    checkpoint: str = "unnamed"
    prefixes: PrefixStore | None = None
    turns: Turns = field(default_factory=Turns, repr=False)

    @classmethod
    def load(
        cls,
        path_or_repo: str | Path | None = None,
        *,
        dtype: mx.Dtype | None = None,
        vision_dtype: mx.Dtype = mx.float32,
        image_mask: str = "reference",
        revision: str | None = None,
        verify: bool = False,
        ranks: Ranks | None = None,
    ) -> Engine:
        """An engine for a checkpoint; see `checkpoint.loading.load`."""
        model, tokenizer = load(
            path_or_repo,
            dtype=dtype,
            vision_dtype=vision_dtype,
            image_mask=image_mask,
            revision=revision,
            verify=verify,
            ranks=ranks,
        )
        return cls(model, tokenizer, "embedded" if path_or_repo is None else str(path_or_repo))

    def prepare(self, request: Request) -> Run:
        """Checks a request, without doing any of it.

        Raises:
            DGemmaError: what this checkpoint cannot do with it.
        """
        run = prepare(self.model, self.tokenizer, request, self.turns)
        return replace(run, prefixes=self.prefixes)

    def stream(self, request: Request) -> Iterator[DenoisingStep | TextCanvas]:
        """Writes one text: an event per denoising step and per committed canvas, as they happen.

        Raises:
            DGemmaError: as `prepare`, at once and not at the first event; several samples.
        """
        if request.samples != 1:
            raise DGemmaError(f"one text was asked for and {request.samples} samples; use samples or stream_samples")
        return stream_text(self.prepare(request))

    def generate(self, request: Request) -> GenerationResult:
        """Like `stream`, all at once."""
        return collect(event for event in self.stream(request) if isinstance(event, TextCanvas))

    def stream_many(
        self, requests: Iterable[Request], *, max_rows: int = MAX_ROWS
    ) -> Iterator[tuple[int, DenoisingStep | TextCanvas | DGemmaError]]:
        """Writes many texts, several at a time: rows of one batch, each with its own prompt, settings and seed.

        Each text is what `generate` gives, up to the rounding of larger products. They end in any order.

        Args:
            requests: asked for one after another, as rows become free.
            max_rows: texts that are written at a time; fewer where memory would not do.

        Yields:
            The number of a request, from 0, and an event of its text; the last canvas has a `finish_reason`. Or the
            error of a request that cannot be answered, beside which the others go on.
        """
        return stream_many(self.prepare, requests, max_rows)

    def stream_samples(self, request: Request) -> Iterator[DenoisingStep | Sample]:
        """The denoising steps of all samples as they happen, then the samples, best first.

        Sample i has the noise of seed + i and is what `generate` gives with that seed.

        Raises:
            DGemmaError: as `prepare`; a noise source, which samples cannot share.
        """
        if request.noise is not None:
            raise DGemmaError("each sample draws from a seed of its own; leave noise out of the request")
        return stream_batch(self.prepare(request))

    def samples(self, request: Request) -> list[Sample]:
        """The texts of `request.samples` runs at once, the likeliest (`mean_log_p`) first."""
        return [event for event in self.stream_samples(request) if isinstance(event, Sample)]

    def choose(
        self, request: Request, template: str, labels: Sequence[str], *, draws: int = choice.DRAWS
    ) -> dict[str, float]:
        """Probabilities of the labels in the one slot `{?}` of a template; they add up to 1. See `choose_each`."""
        return self.choose_each(request, template, [labels], draws=draws)[0]

    def choose_each(
        self, request: Request, template: str, labels: Sequence[Sequence[str]], *, draws: int = choice.DRAWS
    ) -> list[dict[str, float]]:
        """Probabilities of the labels in each slot `{?}` of a template, in one denoiser pass; a slot's add up to 1.

        A label's score is the sum of its tokens' log-probabilities where the labels' canvases differ (behind labels of
        different lengths that is also what follows them), at temperature 1 and without self-conditioning. While a slot
        is read the others hold noise, as long as their longest label; so labels of equal length are read best.

        Args:
            request: the prompt and the seed; what its canvas would start from says `template`.
            template: the whole answer, with its slots; gaps like `{10}` hold noise.
            labels: what may stand in each slot, a list of texts a slot.
            draws: over how many draws of the noise, a pass each, probabilities are averaged.

        Raises:
            DGemmaError: no tokenizer, another number of slots than of lists, fewer than two labels, a label that is
                empty or given twice, an answer that is open or longer than a canvas, and what `prepare` refuses.
        """
        if request.samples != 1 or request.canvas != ():
            raise DGemmaError("a choice writes nothing; leave canvas and samples out of the request")
        return choice.read_choices(self.prepare(request), template, labels, draws)

    def score(self, request: Request, text: str | Sequence[int], *, causal: bool = False) -> Score:
        """How sure the model is of a text behind the prompt, token by token, at temperature 1; see `text.score`.

        Args:
            request: prompt, seed and settings; nothing is written, so a canvas or samples have no place in it.
            text: the answer to score, without a stop token; or token ids.
            causal: reads with the encoder, each token after those before it, in one pass; otherwise with the denoiser,
                each token between all others, a row of a pass for each.

        Raises:
            DGemmaError: an empty text, characters or ids outside the vocabulary, and what `prepare` refuses.
        """
        if request.samples != 1 or request.canvas != ():
            raise DGemmaError("a score writes nothing; leave canvas and samples out of the request")
        return score_text(self.prepare(request), text, causal=causal)

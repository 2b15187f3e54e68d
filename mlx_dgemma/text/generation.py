"""One text: canvases as they are denoised, and as text when they are committed."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_dgemma.diffusion.canvas import stitch
from mlx_dgemma.diffusion.denoiser import Pause, alone, pauses
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.steering import steerings
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.prefill import chunks
from mlx_dgemma.text.choose import likeliest
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.forced import opening_of
from mlx_dgemma.text.reply import MARKS
from mlx_dgemma.text.run import Prefix, Run
from mlx_dgemma.text.structured import StructuredWriter
from mlx_dgemma.text.transcript import Committed, Transcript

Written = Generator[Pause | DenoisingStep | TextCanvas, None, None]


def stream_text(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    """One event per denoising step and one per committed canvas, as they happen."""
    return alone(write(run))


def write(run: Run) -> Written:
    """`stream_text`, which gives way to others between chunks of prefill, and whose passes somebody else answers."""
    with memory.explained():
        prefix = yield from run.encode()
        yield from _Writer(run, prefix).events()


class _Writer:
    """Writes one text over one prefix."""

    def __init__(self, run: Run, prefix: Prefix):
        self.run = run
        self.cache, self.noise, self.transcript = prefix.cache, run.noise(), Transcript(run, prefix)
        self.steerings = run.steerings
        self.canvases, self.is_done = 0, False

    def events(self) -> Written:
        """A call that has to be made is opened behind the thought; then the text is written to its end."""
        if (self.run.callable or self.run.form) and self.run.request.thinking:
            yield from self._write(thought_only=True)
        if self.run.form is not None and not self.is_done and not self._calls():
            writer = StructuredWriter(self.run, self.run.form, self.cache, self.noise, self.transcript)
            yield from writer.events()
            return
        if self.run.callable and not self.is_done:
            given, config = self._opening(), self.run.model.config
            self.transcript.give(given)
            self.steerings = steerings(given, (), 0.0, 0, config.canvas_length, config.vocab_size)
        if not self.is_done:
            yield from self._write()

    def _calls(self) -> bool:
        """Whether the model would rather call a tool than answer in the form that was asked for."""
        tokenizer, request = self.run.tokenizer, self.run.request
        mark = None if tokenizer is None else tokenizer.get_vocab().get(MARKS["open_call"])
        if tokenizer is None or mark is None or not request.tools or request.tool_choice == "none":
            return False
        return likeliest(self.run, self.cache, [tokenizer.encode("{", False)[:1], [mark]]) == 1

    def _opening(self) -> list[int]:
        """Opens the call, up to its first argument; of the likeliest tool if several may be called."""
        openings = [opening_of(self.run.tokenizer, name) for name in self.run.callable]
        return openings[likeliest(self.run, self.cache, openings) if len(openings) > 1 else 0]

    def _write(self, *, thought_only: bool = False) -> Written:
        """Canvas after canvas, to the text's end; or to the end of the thought, where the prefix then ends."""
        run, last, first = self.run, None, self.canvases
        most = run.max_canvases - first
        for event in stitch(
            run.model, self.cache, run.settings, self.noise, most,
            steerings=self.steerings, alternatives=run.request.alternatives,
        ):  # fmt: skip
            if isinstance(event, DenoisingStep):
                last = event
                with self.transcript.clock.paused():
                    yield replace(event, canvas_index=first + event.canvas_index) if first else event
                continue
            if not isinstance(event, CommittedCanvas):
                yield event
                continue
            committed = _committed(event, last)
            end = self.transcript.thought_end(committed) if thought_only else None
            if end == 0:  # the model does not think: what it wrote instead is not kept
                return
            is_last = run.is_last(self.canvases, self.cache)
            canvas = self.transcript.add(committed, is_last=is_last, end=end)
            self.canvases, self.is_done = self.canvases + 1, canvas.finish_reason is not None
            if end is not None and not self.is_done:
                yield from pauses(chunks(run.model, mx.array([committed.tokens[:end]]), self.cache))
            with self.transcript.clock.paused():
                yield canvas
            if self.is_done or end is not None:
                return


def _committed(event: CommittedCanvas, last: DenoisingStep | None) -> Committed:
    """A canvas of one row, with what its last step knew; none had to be made for one that was given whole."""
    tokens = host.ints(event.tokens[0])
    if not event.steps or last is None:
        return Committed(tokens, 0, [0.0] * len(tokens), [0.0] * len(tokens))
    log_p, entropy = host.floats(last.log_p[0]), host.floats(last.entropy[0])
    return Committed(tokens, event.steps, log_p, entropy, _alternatives(last), event.work)


def _alternatives(last: DenoisingStep) -> Sequence[Sequence[tuple[int, float]]]:
    """By position, the likeliest ids and their log-probabilities; () if nobody asked."""
    if last.alternatives is None:
        return ()
    rows = zip(*(own[0].tolist() for own in last.alternatives), strict=True)
    return [[*zip(ids, log_p, strict=True)] for ids, log_p in rows]

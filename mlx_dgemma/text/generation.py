"""One text: canvases as they are denoised, and as text when they are committed."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_dgemma.diffusion.canvas import stitch
from mlx_dgemma.diffusion.denoiser import Pause, alone, pauses
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.shared import in_step
from mlx_dgemma.diffusion.steering import steerings
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.prefill import chunks
from mlx_dgemma.text.causal import Causal
from mlx_dgemma.text.choose import likeliest
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.forced import opening_of
from mlx_dgemma.text.repair import Repair
from mlx_dgemma.text.reply import MARKS
from mlx_dgemma.text.routing import PROBE, goes_causal, is_rewritten
from mlx_dgemma.text.run import Prefix, Run
from mlx_dgemma.text.structured import StructuredWriter
from mlx_dgemma.text.transcript import Committed, Transcript

Written = Generator[Pause | DenoisingStep | TextCanvas, None, None]
Going = Generator[Pause | TextCanvas, None, bool]  # whether the next canvas follows


def stream_text(run: Run) -> Iterator[DenoisingStep | TextCanvas]:
    """One event per denoising step and one per committed canvas, as they happen."""
    ranks = run.model.ranks
    return alone(write(run) if ranks is None else in_step(write(run), ranks))


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
        self.canvases, self.is_done = 0, False  # canvases that were denoised
        self.repair = Repair(run.settings) if run.request.repair else None
        self.causal = None if prefix.last is None else Causal(run, self.cache, self.noise, prefix.last)

    def events(self) -> Written:
        """A call that has to be made is opened behind the thought; then the text is written to its end."""
        if self.run.request.mode == "causal":
            with memory.wired(self.run.model.nbytes + self.cache.nbytes):
                yield from self._write_causally()
            return
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
                last, index = event, self.transcript.canvases
                if self.repair is not None:
                    self.repair.note(event)
                with self.transcript.clock.paused():
                    yield event if event.canvas_index == index else replace(event, canvas_index=index)
            elif not isinstance(event, CommittedCanvas):
                yield event
            elif _is_rewritten(run, event, last):
                if not (yield from self._rewrite(event.steps)):
                    return
            else:
                canvas = _committed(event, last)
                if self.repair is not None and self.causal is not None and event.steps:
                    canvas = yield from self.repair.repaired(canvas, self.causal)
                if not (yield from self._commit(canvas, thought_only=thought_only)):
                    return

    def _commit(self, canvas: Committed, *, thought_only: bool) -> Going:
        """Takes a canvas, or the thought in it; whether the next canvas follows."""
        run, end = self.run, self.transcript.thought_end(canvas) if thought_only else None
        if end == 0:  # the model does not think: what it wrote instead is not kept
            return False
        is_last, tokens = self._is_last(), canvas.tokens[:end]
        told = (yield from self._encode(tokens)) if run.request.causal_log_p else ()
        added = self.transcript.add(replace(canvas, causal_log_p=told), is_last=is_last, end=end)
        self.canvases, self.is_done = self.canvases + 1, added.finish_reason is not None
        with self.transcript.clock.paused():
            yield added
        if self.is_done:
            return False
        if not told and (end is not None or self.causal is not None):  # else `stitch` does it
            yield from self._encode(tokens)
        if end is not None or run.request.mode != "auto":
            return end is None
        causal = (yield from self._write_causally(PROBE)) if self.canvases == 1 else 0.0
        return (yield from self._goes_on(added.stats.tokens_per_second, causal))

    def _encode(self, tokens: Sequence[int]) -> Generator[Pause, None, list[float]]:
        """Tokens join the prefix; their causal log-probabilities, if the request asks for them."""
        if self.causal is not None:
            return (yield from self.causal.read(tokens))
        yield from pauses(chunks(self.run.model, mx.array([list(tokens)]), self.cache))
        return []

    def _is_last(self) -> bool:
        """Whether no canvas can follow the one that is denoised."""
        end = self.transcript.position + self.run.model.config.canvas_length
        return self.run.is_last(self.canvases, self.cache) or end >= self.run.settings.max_new_tokens

    def _rewrite(self, steps: int) -> Going:
        """Writes a canvas causally in the place of one that was denoised; whether the next canvas follows."""
        length = self.run.model.config.canvas_length
        denoised = length / self.transcript.clock.seconds
        causal = yield from self._write_causally(None if self._is_last() else length, steps=steps)
        self.canvases += 1
        return (yield from self._goes_on(denoised, causal))

    def _goes_on(self, denoised: float, causal: float) -> Going:
        """Whether the next canvas is denoised; if not, the text is written to its end. Rates are in tokens per second.

        It is decided once, behind the first canvas; and where no canvas has room behind what was written causally.
        """
        config = self.run.model.config
        has_room = self.cache.length + config.canvas_length <= config.max_position_embeddings
        is_faster = self.canvases == 1 and goes_causal(denoised, causal)
        if not self.is_done and (is_faster or not has_room):
            yield from self._write_causally(goes_on=True)
        return not self.is_done

    def _write_causally(
        self, count: int | None = None, *, steps: int = 0, goes_on: bool = False
    ) -> Generator[Pause | TextCanvas, None, float]:  # fmt: skip
        """Writes so many tokens, or to the text's end; `steps` were made before in vain. Gives tokens per second.

        `goes_on`: behind what was written causally before, as one canvas with it.
        """
        assert self.causal is not None  # `Run.encode` gives what it begins with
        run = self.run
        began, begins = self.transcript.clock.seconds, self.transcript.position
        while not self.is_done and count != 0:
            positions = run.model.config.max_position_embeddings - self.cache.length
            room = min(run.settings.max_new_tokens - self.transcript.position, positions)
            span = yield from self.causal.write(min(PROBE, room, count or PROBE))
            length = len(span.tokens)
            added = self.transcript.add(replace(span, steps=steps, goes_on=goes_on), is_last=length == room)
            self.is_done, goes_on, steps = added.finish_reason is not None, True, 0
            count = None if count is None else count - length
            with self.transcript.clock.paused():
                yield added
        return (self.transcript.position - begins) / (self.transcript.clock.seconds - began)


def _is_rewritten(run: Run, event: CommittedCanvas, last: DenoisingStep | None) -> bool:
    """Whether a canvas that was denoised is written again causally."""
    if run.request.mode != "auto" or last is None or not event.steps:
        return False
    return is_rewritten(is_settled=all(last.finished_rows), mean_entropy=last.mean_entropy)


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

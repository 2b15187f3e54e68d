"""An answer of a given form: what can only be so is clamped, values are chosen or denoised behind it.

The canvas begins with the part of the answer that stands and is otherwise free. Once it is denoised, as much of it
stands as goes on with an answer, and whatever must follow; the rest is denoised anew. So a value takes as many tokens
as it needs, a model that knows the form is done after one canvas, and one that does not cannot leave it. A value that
is not allowed is denoised a few times, and then read token by token among those that are.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace

from mlx_dgemma.diffusion.canvas import stitch
from mlx_dgemma.diffusion.denoiser import Pause
from mlx_dgemma.diffusion.events import CommittedCanvas, DenoisingStep
from mlx_dgemma.diffusion.noise import Noise
from mlx_dgemma.diffusion.steering import steerings
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model import host
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.text.attempts import Answer, Canvas, Spelling, goes_on, likely_option, likely_tokens
from mlx_dgemma.text.events import TextCanvas
from mlx_dgemma.text.formats import Format, fits, place
from mlx_dgemma.text.grammar import Number, String
from mlx_dgemma.text.jsontext import Read, read
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.transcript import Transcript

RETRIES = 3  # of a value that is not allowed
RESERVE = 256  # tokens of the budget that are kept for closing what is open
CLOSING = ('"', "]", "}")
_EARLY = {
    "length": "it was cut off; raise max_new_tokens",
    "stop": "a stop text ended it",
    "tool_calls": "a call ended it",
}


class StructuredWriter:
    """Writes one answer over a prefix."""

    def __init__(self, run: Run, form: Format, cache: PrefixCache, noise: Noise, transcript: Transcript):
        self.run, self.form, self.cache, self.noise = run, form, cache, noise
        self.spelling = Spelling(run)
        self.answer = Answer(run, cache, transcript, self.spelling)
        self.failures: Counter[int] = Counter()  # by where a value begins; -1: of the whole
        self.fault = self.shown = ""
        self.is_closed = False  # whether the answer ends where its text does
        self.last = "", False  # the last draft, and whether the model ended it
        self.dead: set[str] = set()  # beginnings that nothing goes on with
        self.pardoned: list[tuple[String | Number, object]] = []  # values that no attempt made right

    def events(self) -> Generator[Pause | DenoisingStep | TextCanvas, None, None]:
        """The denoising steps of every attempt, and the canvases that are committed.

        Raises:
            DGemmaError: a strict form that the answer does not have in the end.
        """
        answer = self.answer
        while not answer.is_over:
            state = self._read(answer.text, ended=self.is_closed)
            if state.is_done:
                if not self._goes_back(state):
                    yield from self._commit(len(answer.text), is_done=True)
            elif answer.is_spent:
                self._tell(_EARLY["length"])
                yield from self._commit(len(answer.text), is_cut=True)
            elif answer.is_long:
                yield from self._commit(self._settled(state))
            else:
                yield from self._go_on(state)

    def _commit(self, characters: int, *, is_done: bool = False, is_cut: bool = False) -> Iterator[TextCanvas]:
        """Commits the first characters; tells if something else than the answer's end ends the text."""
        for canvas in self.answer.commit(characters, is_done=is_done, is_cut=is_cut):
            self.shown += canvas.text
            if canvas.finish_reason is not None and not (is_done and self.shown == self.answer.text):
                self._tell(_EARLY[canvas.finish_reason])
            yield replace(canvas, fault=self.fault) if canvas.finish_reason else canvas

    def _go_on(self, state: Read) -> Iterator[Pause | DenoisingStep]:
        """Makes the answer longer, or notes a failure."""
        begins = _begins(state)
        has_failed = self.failures[begins] >= RETRIES
        if len(state.options) == 1 and not state.is_free:
            self._add(state, state.options[0])
        elif (self.answer.is_looping or self.answer.is_late(RESERVE)) and (end := self._ending(state)):
            self._add(state, end)
        elif state.options and not state.is_free and (has_failed or not state.is_layout):
            options = [self._with_rest(state, option) for option in state.options]
            self._add(state, state.options[likely_option(self.run, self.cache, self.answer.unsettled(options))])
        elif has_failed:
            self._read_token(state)
        else:
            before = self.answer.text
            yield from self._denoise(state)
            self.failures[begins] += self.answer.text == before

    def _read(self, text: str, *, ended: bool = False, is_lenient: bool = False) -> Read:
        check = self._pardons if is_lenient else self._allows
        return read(self.form.node, text, ended=ended, check=check, can_escape=self.spelling.can_escape)

    def _allows(self, node: String | Number, value: object) -> bool:
        return fits(node, value) and ((node, value) in self.pardoned or self.form.allows(node, value))

    def _pardons(self, node: String | Number, value: object) -> bool:
        """Lets a value pass that only the check at the end will refuse."""
        if fits(node, value) and not self._allows(node, value):
            self.pardoned.append((node, value))
        return fits(node, value)

    def _add(self, state: Read, addition: str) -> None:
        """The answer goes on with a text."""
        self.answer.become(self._read(state.text + addition).text)

    def _take(self, longer: Read, draft: Canvas | None = None) -> None:
        """The answer becomes what was read."""
        self.is_closed = longer.is_done  # a number at the end does not go on
        self.answer.become(longer.text, draft)

    def _with_rest(self, state: Read, option: str) -> str:
        """The answer with an option, and all that has to follow it."""
        text = state.text + option
        while True:
            then = self._read(text)
            if then.is_done or then.is_free or len(then.options) != 1 or len(text) > len(state.text) + 1000:
                return text
            text = then.text + then.options[0]

    def _denoise(self, state: Read) -> Iterator[Pause | DenoisingStep]:
        """Denoises what follows, and takes as much of it as is an answer."""
        given = self.answer.clamped(is_open=state.in_string)
        config = self.run.model.config
        steered = steerings(given, (), 0.0, 0, config.canvas_length, config.vocab_size)
        last, tokens = None, list[int]()
        for event in stitch(self.run.model, self.cache, self.run.settings, self.noise, 1, steerings=steered):
            if isinstance(event, DenoisingStep):
                last = event
                with self.answer.transcript.clock.paused():
                    yield replace(event, canvas_index=self.answer.canvases)
            elif isinstance(event, CommittedCanvas):
                tokens = host.ints(event.tokens[0])
                self.answer.steps += event.steps
                self.answer.work += event.work
            else:
                yield event
        text, ended = self.spelling.behind(given, tokens)
        draft = Canvas(tokens, host.floats(last.log_p[0]), host.floats(last.entropy[0])) if last else None
        self.last = state.text + text, ended
        self._take(self._read(self.last[0], ended=ended), draft)

    def _read_token(self, state: Read) -> None:
        """Goes on with the likeliest token that is allowed; or with a value that only the check refuses."""
        begins = _begins(state)
        text, ended = self.last
        if state.in_string and text.startswith(state.text):  # what a pattern asks for cannot be read token by token
            taken = self._read(text, ended=ended, is_lenient=True)
            if self._starts_later(taken, begins):
                self._take(taken)
                return
        given = self.answer.clamped(is_open=state.in_string)
        tokens = likely_tokens(self.run, self.cache, given, self.spelling)
        for is_lenient in (False, True):
            for token in tokens:
                added = " " if token in self.spelling.stops else self.spelling.of(given, token)
                then = self._read(state.text + added, is_lenient=is_lenient)
                is_new = then.is_done or (goes_on(then.text, state.text) and then.text not in self.dead)
                if then.is_whole and is_new:
                    self._take(then)
                    self.failures[begins] = RETRIES - 1  # one draft, before the next token
                    return
        self.dead.add(state.text)
        if begins == len(state.text) or not self.answer.cut(begins):
            self._tell("no token goes on with it")
            self.answer.give_up()

    @staticmethod
    def _starts_later(state: Read, begins: int) -> bool:
        """Whether the value that begins at a place is whole."""
        return state.is_done or _begins(state) > begins or (state.is_layout and not state.is_free)

    def _ending(self, state: Read) -> str:
        """What closes the value that is open, "" if it cannot be closed here."""
        for end in CLOSING:
            then = self._read(state.text + end)
            if then.is_whole and goes_on(then.text, state.text):
                return end
        return ""

    def _goes_back(self, state: Read) -> bool:
        """Whether a whole answer is not allowed, and is cut back to the value that is at fault."""
        fault, path = self.form.fault(state.text)
        if not fault:
            return False
        self.failures[-1] += 1
        begins = state.starts.get(path, 0)
        if self.failures[-1] <= RETRIES and path and self.answer.cut(begins):
            self.is_closed = False
            return True
        self._tell(f"{place(path)}: {fault}")
        return False

    def _tell(self, fault: str) -> None:
        """Notes why the answer has not the form that was asked for."""
        if self.form.is_strict:
            raise DGemmaError(f"the answer does not follow its schema: {fault}")
        self.fault = self.fault or fault

    def _settled(self, state: Read) -> int:
        """How many characters of the answer will not change: those before the value that is open."""
        begins = len(state.text[: _begins(state)].rstrip(" "))
        return begins if begins > self.answer.settled else len(self.answer.text)


def _begins(state: Read) -> int:
    """Where the last value begins."""
    return max(state.starts.values())

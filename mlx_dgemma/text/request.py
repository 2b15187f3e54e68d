"""What is asked of an engine: one frozen request, whoever asks. Pure data, which a command line can make at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError

if TYPE_CHECKING:
    from mlx_dgemma.diffusion.noise import Noise
    from mlx_dgemma.text.images import Source

Message = dict[str, Any]  # JSON and images: "role", "content", and what a chat template takes beside them
Prompt = str | list[Message] | list[int]
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 100
MAX_ROWS = 4  # texts that are written at a time
MAX_IMAGES = 16  # of a request that comes over a network
MODES = ("diffusion", "causal", "auto")


@dataclass(frozen=True)
class CanvasPlan:
    """What the canvases of a generation start from.

    Attributes:
        given: token ids by position, None where the model fills in, over as many canvases as it takes; or a text with
            gaps (see `text.template`), which ends where it ends.
        draft: token ids, or a text, that the first canvas starts from instead of noise.
        noise: share of the draft that is replaced by noise, 0 … 1.
        seed: chooses which.

    Raises:
        DGemmaError: what is neither a text nor token ids, a share or a seed that is no number.
    """

    given: str | Sequence[int | None] = ()
    draft: str | Sequence[int] = ()
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("given", "draft"):
            value = vars(self)[name]
            if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
                raise DGemmaError(f"canvas: {name} is a {type(value).__name__}; give a text or a list of token ids")
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float):
            raise DGemmaError(f"canvas: the share of noise is {self.noise!r}; give a number from 0 to 1")
        if type(self.seed) is not int:
            raise DGemmaError(f"canvas: seed must be an integer, got {self.seed!r}")


@dataclass(frozen=True)
class Request:
    """One thing to write, or to read: what the prompt is, how to denoise, and what the canvases start from.

    Attributes:
        prompt: text, chat messages ({"role": …, "content": …}), or token ids, which are used as they are.
        settings: those not given are the checkpoint's.
        seed: of the built-in noise, 0 … 2^63 − 1; ignored if `noise` is given.
        noise: a source of randomness (see `diffusion.noise.Noise`).
        canvas: what is given in the text, as in `CanvasPlan.given`, or a whole plan. Given tokens stay as they are, and
            generation goes on at least to the last of them.
        samples: how many texts, for `Engine.samples`; sample i has the noise of seed + i.
        chat_template: whether a text prompt becomes a user turn of the checkpoint's chat template.
        thinking: whether the model is asked to think first.
        tools: function schemas that the model may call, as OpenAI's clients write them.
        tool_choice: "auto", "none" (the model sees no tools), "required" (it calls one), or the name of one that it
            calls.
        parallel_tool_calls: whether an answer may make several calls; otherwise its first one ends it.
        stop: texts that end the answer where the first of them would stand.
        response_format: the form of the answer, as OpenAI's clients write it: {"type": "json_object"}, or {"type":
            "json_schema", "json_schema": {"schema": …, "strict": …}}; see `text.formats`.
        alternatives: how many of the likeliest tokens are told for each token of the text, 0 … 100.
        mode: "diffusion" denoises canvases; "causal" writes one token after another with the same weights, as plain
            Gemma does; "auto" denoises and goes on causally where that is better, see `text.routing`.
        causal_log_p: whether the causal mode reads what was written, see `TextCanvas.causal_log_p`.
        images: paths, bytes or PIL images; before the text of a text prompt, in the place of the image tokens of a raw
            one or of ids. Messages hold theirs themselves, see `text.messages`.
        image_tokens: of an image in the prompt, at most: 70, 140, 280, 560 or 1120; None takes the checkpoint's.
        repair: whether tokens of a canvas that the causal mode does not believe are denoised again, see `text.repair`.

    Raises:
        DGemmaError: settings, a seed, a canvas, a number of samples, a choice or stop texts that are none.
    """

    prompt: Prompt
    _: KW_ONLY
    settings: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 0
    noise: Noise | None = None
    canvas: str | Sequence[int | None] | CanvasPlan = ()
    samples: int = 1
    chat_template: bool = True
    thinking: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    stop: Sequence[str] = ()
    response_format: Mapping[str, Any] | None = None
    alternatives: int = 0
    mode: str = "diffusion"
    causal_log_p: bool = False
    repair: bool = False
    images: Sequence[Source] = ()
    image_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.settings, GenerationConfig):
            raise DGemmaError(f"settings are a {type(self.settings).__name__}; give a GenerationConfig")
        if type(self.seed) is not int or not 0 <= self.seed <= MAX_SEED:
            raise DGemmaError(f"seed must be an integer from 0 to 2^63 - 1, got {self.seed!r}")
        if type(self.samples) is not int or self.samples < 1:
            raise DGemmaError(f"the number of samples must be an integer from 1 on, got {self.samples!r}")
        if type(self.alternatives) is not int or not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise DGemmaError(
                f"alternatives must be an integer from 0 to {MAX_ALTERNATIVES}, got {self.alternatives!r}"
            )
        for name in ("chat_template", "thinking", "parallel_tool_calls", "causal_log_p", "repair"):
            if type(vars(self)[name]) is not bool:
                raise DGemmaError(f"{name} must be True or False, got {vars(self)[name]!r}")
        if not isinstance(self.images, list | tuple):
            raise DGemmaError(f"images are a {type(self.images).__name__}; give a list of paths, bytes or PIL images")
        if not isinstance(self.canvas, CanvasPlan):
            CanvasPlan(given=self.canvas)
        self._check_conversation()
        self._check_mode()

    def _check_conversation(self) -> None:
        """Raises DGemmaError for tools, a choice or stop texts that are none."""
        if not isinstance(self.tools, list | tuple):
            raise DGemmaError(f"tools are a {type(self.tools).__name__}; give a list of function schemas")
        if not isinstance(self.tool_choice, str):
            raise DGemmaError(f'tool_choice must be "auto", "none", "required" or a name, got {self.tool_choice!r}')
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise DGemmaError(f"tool_choice is {self.tool_choice!r} and there are no tools; give some")
        if not isinstance(self.stop, list | tuple) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise DGemmaError(f"stop must be a list of texts that are not empty, got {self.stop!r}")

    def _check_mode(self) -> None:
        """Raises DGemmaError for a mode that is none, or does not go with the rest."""
        if self.mode not in MODES:
            raise DGemmaError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        others = {"response_format": self.response_format is not None, "samples": self.samples > 1}
        for name in ("causal_log_p", "repair"):
            for other, is_given in others.items():
                if vars(self)[name] and is_given:
                    raise DGemmaError(f"{name} does not go with {other}; leave one out")
        if self.repair and self.alternatives:
            raise DGemmaError("repair does not go with alternatives; leave one out")
        others["canvas"] = self.plan != CanvasPlan()
        others["a tool that has to be called"] = self.tool_choice not in ("auto", "none")
        others["repair"] = self.repair
        others["a token_choice of one's own"] = not isinstance(self.settings.token_choice, str)
        for other, is_given in others.items():
            if self.mode != "diffusion" and is_given:
                raise DGemmaError(f"mode {self.mode!r} does not go with {other}; leave one out")

    @property
    def is_read_causally(self) -> bool:
        """Whether the causal mode reads along, or writes."""
        return self.causal_log_p or self.repair or self.mode != "diffusion"

    @property
    def plan(self) -> CanvasPlan:
        """What the canvases start from."""
        return self.canvas if isinstance(self.canvas, CanvasPlan) else CanvasPlan(given=self.canvas)

"""Sampler settings: the fields of generation_config.json, validated with the reference's rules.

Source of the rules: transformers, DiffusionGemmaGenerationConfig.validate and EntropyBoundSamplerConfig.
"""

import json
import math
import sys
from dataclasses import dataclass, field, fields
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dgemma.diffusion.settling import FAST, Settling
from mlx_dgemma.diffusion.strategies import Acceptance, Stopping, TemperatureSchedule, TokenChoice
from mlx_dgemma.errors import DGemmaError, first_line

TOKEN_CHOICES = ("categorical", "argmax")
SAMPLER = "EntropyBoundSamplerConfig"
# Strategies of one's own, the protocol of each, and the numbers of the published one, which it has no use for.
STRATEGIES: dict[str, tuple[type, tuple[str, ...]]] = {
    "temperature_schedule": (TemperatureSchedule, ("t_min", "t_max")),
    "acceptance": (Acceptance, ("entropy_bound",)),
    "stopping": (Stopping, ("confidence_threshold", "stability_threshold")),
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to denoise and when to stop.

    Fields that are not given take the checkpoint's generation_config.json when generating, and these defaults where
    that file is silent too.

    Attributes:
        max_new_tokens: length of the text in tokens; whole canvases are denoised and the text is cut.
        max_denoising_steps: upper bound on denoising steps per canvas, N.
        t_max: temperature the schedule starts from (at n = N steps remaining).
        t_min: temperature it moves towards (n = 0).
        entropy_bound: nats; larger accepts more positions a step (arXiv 2505.24857).
        confidence_threshold: nats; a canvas may stop once its mean entropy is below this.
        stability_threshold: number of previous steps whose argmax canvas must equal the current one.
        eos_token_id: ids that end the text; [] for none, None for the checkpoint's.
        token_choice: "categorical" draws the proposal, "argmax" takes the most likely token; or a strategy.
        soft_embedding_cutoff: nats; tokens less likely than exp(−cutoff) times the likeliest of their position may be
            left out of soft embeddings, which is faster and not exact. None keeps all.
        temperature_schedule, acceptance, stopping: strategies (see `diffusion.strategies`) instead of the published
            ones, whose numbers are then left out.
        settling: when positions leave the computation until a full step confirms the canvas; None: never.
        fast: the preset for less work: positions settle by a rule that was measured (`settling.FAST`).
    """

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    t_max: float = 0.8
    t_min: float = 0.4
    entropy_bound: float = 0.1
    confidence_threshold: float = 0.005
    stability_threshold: int = 1
    eos_token_id: list[int] | None = None
    token_choice: str | TokenChoice = "categorical"
    soft_embedding_cutoff: float | None = None
    temperature_schedule: TemperatureSchedule | None = None
    acceptance: Acceptance | None = None
    stopping: Stopping | None = None
    settling: Settling | None = None
    fast: bool = False

    if TYPE_CHECKING:  # set by `__new__`, and no field
        _given: frozenset[str] = field(init=False)

    def __new__(cls, **given: Any) -> "GenerationConfig":
        config = super().__new__(cls)
        object.__setattr__(config, "_given", frozenset(given))
        return config

    def __post_init__(self) -> None:
        _positive_int("max_new_tokens", self.max_new_tokens)
        _positive_int("max_denoising_steps", self.max_denoising_steps)
        for name in ("t_min", "t_max"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise DGemmaError(f"{name} must be a number >= 0, got {value!r}")
        # with one of them given, the other is the checkpoint's: `over` makes the comparison
        if {"t_min", "t_max"} <= self._given and self.t_max <= self.t_min:
            raise DGemmaError(f"t_max must be greater than t_min, got t_max={self.t_max!r} and t_min={self.t_min!r}")
        for name in ("entropy_bound", "confidence_threshold"):
            value = getattr(self, name)
            if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
                raise DGemmaError(f"{name} must be a float > 0, got {value!r}")
        if not _is_int(self.stability_threshold) or self.stability_threshold < 0:
            raise DGemmaError(f"stability_threshold must be an integer >= 0, got {self.stability_threshold!r}")
        if not isinstance(self.token_choice, TokenChoice) and self.token_choice not in TOKEN_CHOICES:
            raise DGemmaError(f"token_choice must be one of {', '.join(TOKEN_CHOICES)}, got {self.token_choice!r}")
        self._check_strategies()
        cutoff = self.soft_embedding_cutoff
        if cutoff is not None and (not _is_number(cutoff) or cutoff <= 0):
            raise DGemmaError(f"soft_embedding_cutoff must be a number > 0 (nats) or None, got {cutoff!r}")
        if self.eos_token_id is not None:
            object.__setattr__(self, "eos_token_id", _id_list(self.eos_token_id))

    def _check_strategies(self) -> None:
        if type(self.fast) is not bool:
            raise DGemmaError(f"fast must be True or False, got {self.fast!r}")
        if self.fast and self.settling is not None:
            raise DGemmaError(f"fast is of no use beside settling={self.settling!r}; leave one of them out")
        if self.settling is not None and not isinstance(self.settling, Settling):
            raise DGemmaError(f"settling must be a Settling or None, got {self.settling!r}")
        for name, (protocol, numbers) in STRATEGIES.items():
            strategy = getattr(self, name)
            if strategy is None:
                continue
            if isinstance(strategy, type) or not isinstance(strategy, protocol):
                raise DGemmaError(f"{name} must be an object that can be called, or None, got {strategy!r}")
            unused = [n for n in numbers if n in self._given and getattr(self, n) != _DEFAULTS[n]]
            if unused:
                raise DGemmaError(f"{unused[0]} is of no use beside {name}={strategy!r}; leave one of them out")

    @property
    def given(self) -> frozenset[str]:
        """The fields that were given, by name; the others are defaults."""
        return self._given

    @property
    def rest(self) -> Settling | None:
        """When positions settle; None: never."""
        return self.settling or (FAST if self.fast else None)

    @property
    def stops(self) -> list[int]:
        """Ids that end the text; none where nothing says which."""
        return self.eos_token_id or []

    def over(self, base: "GenerationConfig") -> "GenerationConfig":
        """These settings where they were given, `base` elsewhere."""
        merged = {f.name: getattr(base, f.name) for f in fields(self)}
        merged |= {name: getattr(self, name) for name in self._given if getattr(self, name) is not None}
        unused = [n for name, (_, numbers) in STRATEGIES.items() if merged[name] is not None for n in numbers]
        return GenerationConfig(**{name: value for name, value in merged.items() if name not in unused})

    def to_dict(self) -> dict[str, Any]:
        """The settings in force, as JSON types.

        Strategies of one's own, and settling, stand there as texts, without the numbers they replace.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, (_, numbers) in STRATEGIES.items():
            own = values.pop(name)
            if own is not None:
                values = {n: value for n, value in values.items() if n not in numbers} | {name: repr(own)}
        settling = values.pop("settling")
        if settling is not None:  # it is left out otherwise, as it was before there was any
            values["settling"] = repr(settling)
        if not self.fast:
            del values["fast"]
        choice = self.token_choice
        return values | {"token_choice": choice if isinstance(choice, str) else repr(choice)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "GenerationConfig":
        """Reads the content of a generation_config.json; foreign fields are ignored, other samplers refused."""
        if not isinstance(content, dict):
            raise DGemmaError(f"generation_config is {content!r}, it must be a JSON object")
        names = {f.name for f in fields(cls)} - {
            "token_choice",
            "soft_embedding_cutoff",
            "settling",
            "fast",
            *STRATEGIES,
        }
        given = {name: value for name, value in content.items() if name in names and value is not None}
        sampler = content.get("sampler_config")
        if sampler is not None:
            if not isinstance(sampler, dict) or sampler.get("_cls_name", SAMPLER) != SAMPLER:
                raise DGemmaError(f"sampler_config is {sampler!r}, only {SAMPLER} is supported")
            given["entropy_bound"] = sampler.get("entropy_bound")
        return cls(**given)

    @classmethod
    def from_file(cls, path: Path) -> "GenerationConfig":
        try:
            config = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
            config.over(cls())  # a single temperature is compared with the default of the other
            return config
        except (OSError, ValueError, RecursionError) as error:
            raise DGemmaError(f"{path}: {first_line(error)}") from None


# `__new__` hides the fields from `help` and completion
_fields = Signature(list(signature(GenerationConfig.__init__).parameters.values())[1:])
GenerationConfig.__signature__ = _fields  # type: ignore[attr-defined]  # what `inspect` looks for; no field
_DEFAULTS = {f.name: f.default for f in fields(GenerationConfig)}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max  # and no NaN


def _positive_int(name: str, value: Any) -> None:
    if not _is_int(value) or value <= 0:
        raise DGemmaError(f"{name} must be a positive integer, got {value!r}")
    if value > sys.maxsize:
        raise DGemmaError(f"{name} must be a positive integer below 2^63, got {value!r}")


def _id_list(value: Any) -> list[int]:
    ids = [value] if _is_int(value) else list(value) if isinstance(value, list | tuple) else None
    if ids is None or not all(_is_int(i) and i >= 0 for i in ids):
        raise DGemmaError(f"eos_token_id must be a list of token ids, got {value!r}")
    return ids

"""Options that commands share: which checkpoint, and the sampler's settings. No heavy imports."""

import argparse
from dataclasses import fields

from mlx_dgemma.diffusion.settings import TOKEN_CHOICES, GenerationConfig

_SETTINGS = {f.name for f in fields(GenerationConfig)}


def add_model(parser: argparse.ArgumentParser) -> None:
    about = "checkpoint folder or hub repository (default: the embedded checkpoint)"
    parser.add_argument("--model", metavar="M", help=about)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Options that are fields of `GenerationConfig`, in a group of their own."""
    add = parser.add_argument_group("sampler (defaults: the checkpoint's generation_config.json)").add_argument
    add("--max-tokens", dest="max_new_tokens", type=int, metavar="N", help="length of the text (canvases are whole)")
    add("--max-denoising-steps", type=int, metavar="N", help="denoising steps per canvas, at most")
    add("--entropy-bound", type=float, metavar="NATS", help="larger accepts more tokens a step")
    add("--t-min", type=float, metavar="T", help="temperature at the end of the schedule")
    add("--t-max", type=float, metavar="T", help="temperature at its start")
    add("--confidence-threshold", type=float, metavar="NATS", help="mean entropy below which a canvas may stop")
    add("--stability-threshold", type=int, metavar="N", help="previous steps that must agree before it stops")
    add("--soft-embedding-cutoff", type=float, metavar="NATS", help="leave unlikely tokens out of soft embeddings")
    add("--token-choice", choices=TOKEN_CHOICES, help="draw the proposed tokens, or take the most likely ones")


def settings_of(args: argparse.Namespace) -> GenerationConfig:
    """The settings that were given.

    Raises:
        DGemmaError: a value that its field cannot have.
    """
    return GenerationConfig(**{n: value for n, value in vars(args).items() if n in _SETTINGS and value is not None})

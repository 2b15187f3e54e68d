"""Options that commands share: which checkpoint, the sampler's settings, and what people know from other programs."""

import argparse
from dataclasses import fields

from mlx_dgemma.diffusion.settings import TOKEN_CHOICES, GenerationConfig
from mlx_dgemma.distributed.plan import MODES, Plan
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.terminal.cli import Elsewhere

DTYPES = ("bfloat16", "float16", "float32")
REAL = "mlx-community/diffusiongemma-26B-A4B-it-4bit"
_SETTINGS = {f.name for f in fields(GenerationConfig)}
_OTHERS = {
    ("--temp", "--temperature"): "this sampler's temperature falls while it denoises: --t-max and --t-min",
    ("--top-p", "--top-k", "--min-p"): "this sampler accepts tokens by their entropy: --entropy-bound",
    ("--max-kv-size", "--kv-bits"): "the prefix is kept whole and exact",
    ("--draft-model", "--num-draft-tokens"): "a canvas of tokens is denoised at once, nothing has to be drafted",
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, in which type."""
    about = "checkpoint folder or hub repository (default: the embedded checkpoint)"
    parser.add_argument("-m", "--model", metavar="M", help=about)
    about = "of weights and activations (default: the checkpoint's own; float32 on a CPU)"
    parser.add_argument("--dtype", choices=DTYPES, help=about)
    about = "do not ask macOS to keep the weights in memory"
    parser.add_argument("--no-wire", dest="wire", action="store_false", help=about)


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Whether several processes write together."""
    add = parser.add_argument_group("several machines (see docs/distributed.md)").add_argument
    about = "share each denoising step among the ranks that mlx.launch starts, by positions (canvas, the default)"
    add("--distributed", nargs="?", const=MODES[0], choices=MODES, metavar="HOW", help=about)
    about = "how much each rank takes, 3,1 say, or measured (default: all alike)"
    add("--shares", metavar="N,N", help=about)


def plan_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Plan | None:
    """How it was typed that ranks write together; None for one process."""
    if args.distributed is None:
        if args.shares is not None:
            parser.error("--shares goes with --distributed; give both")
        return None
    try:
        return Plan.of(args.shares)
    except DGemmaError as error:
        parser.error(str(error))


def add_image_tokens(parser: argparse.ArgumentParser) -> None:
    """The budget of an image."""
    about = "tokens of an image at most: 70, 140, 280, 560 or 1120 (default: the checkpoint's, 280)"
    parser.add_argument("--image-tokens", type=_budget, metavar="N", help=about)


def _budget(typed: str) -> int:
    from mlx_dgemma.text.images import BUDGETS  # late, as numpy takes longer than a usage error may

    known = {str(budget): budget for budget in BUDGETS}
    if typed not in known:
        raise argparse.ArgumentTypeError(f"{typed!r} is none of {', '.join(known)}")
    return known[typed]


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Options that are fields of `GenerationConfig`, in a group of their own; what has no equal says what to use."""
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
    about = "less work per token: what has settled is not computed again until a full step confirms the canvas"
    add("--fast", action="store_true", default=None, help=about)
    for names, instead in _OTHERS.items():
        parser.add_argument(*names, action=Elsewhere, instead=instead)


def settings_of(args: argparse.Namespace) -> GenerationConfig:
    """The settings that were given.

    Raises:
        DGemmaError: a value that its field cannot have, in the option's name.
    """
    given = {name: value for name, value in vars(args).items() if name in _SETTINGS and value is not None}
    try:
        return GenerationConfig(**given)
    except DGemmaError as error:
        name, _, rest = str(error).partition(" ")
        option = "--max-tokens" if name == "max_new_tokens" else f"--{name.replace('_', '-')}"
        raise DGemmaError(f"{option if name in given else name} {rest}") from None

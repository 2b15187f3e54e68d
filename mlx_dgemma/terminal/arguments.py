"""What is typed for `dgemma-generate`: the options, and the request that they make. No heavy imports."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_dgemma.distributed.plan import Plan
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.tasks.embedded import LEARNED
from mlx_dgemma.terminal.cli import Parser
from mlx_dgemma.terminal.inputs import read_schema, read_stdin, read_tools
from mlx_dgemma.terminal.options import (
    add_distributed,
    add_image_tokens,
    add_model,
    add_settings,
    plan_of,
    settings_of,
)
from mlx_dgemma.terminal.prompts import Asked, read_prompts
from mlx_dgemma.text.request import MAX_ROWS, MAX_SEED, MODES, CanvasPlan, Prompt, Request

WATCH_DELAY = 0.3  # seconds: a step of the embedded checkpoint is faster than the eye


@dataclass(frozen=True)
class Options:
    """What the command line asks for beside the request.

    Attributes:
        model: checkpoint folder or hub repository; None is the embedded one.
        template: with slots for the labels of `choices`.
        choices: labels, for all slots or a list a slot; None writes a text.
        trace: file to record the run in.
        json, quiet, watch: how it is shown.
        watch_delay: seconds that each step is seen at least.
        show_thoughts: whether thoughts are printed, on stderr.
        prefix_cache: folder of encoded prompts.
        dtype, wire: how the checkpoint is loaded, see `terminal.start`.
        many: what a file of prompts asks; None for one prompt.
        distributed: how ranks write together; None for one process.
    """

    model: str | None
    template: str
    choices: list[list[str]] | None
    trace: str | None
    json: bool
    quiet: bool
    watch: bool
    watch_delay: float
    show_thoughts: bool
    prefix_cache: str | None
    dtype: str | None
    wire: bool
    many: "Many | None" = None
    distributed: Plan | None = None

    def silent(self) -> "Options":
        """Of a rank that works along: it shows and writes nothing."""
        many = None if self.many is None else replace(self.many, output=None, resume=False)
        return replace(self, trace=None, json=False, quiet=True, watch=False, many=many)


@dataclass(frozen=True)
class Many:
    """What `--prompts` asks for: its lines, the file for the answers (None is stdout), and how many at a time."""

    asked: Sequence[Asked]
    output: str | None
    resume: bool
    force: bool
    max_batch: int


def build_parser() -> argparse.ArgumentParser:
    tasks = "\n".join(f"  {task.prompt(task.example):24} {task.about}" for task in LEARNED.values())
    parser = Parser(
        prog="dgemma-generate",
        description="Generate text with DiffusionGemma: whole canvases of tokens are denoised at once.",
        epilog=f"Without --model a small embedded checkpoint answers, which knows these tasks:\n{tasks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    add = parser.add_argument
    add("words", nargs="*", metavar="PROMPT", help="the user's text, instead of --prompt")
    add("-p", "--prompt", metavar="P", help="the user's text; - reads it from stdin")
    add("--image", metavar="PATH", action="append", help="an image before the text; may be repeated (docs/images.md)")
    add_image_tokens(parser)
    add("--system", "--system-prompt", metavar="S", help="a system turn before the prompt")
    about = "give the prompt to the model as it is"
    add("--no-chat-template", "--ignore-chat-template", action="store_true", help=about)
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--trace", metavar="FILE", help="record every denoising step in FILE (.npz), which dgemma-report shows")
    stderr = parser.add_mutually_exclusive_group()
    stderr.add_argument("-q", "--quiet", action="store_true", help="no progress and no summary on stderr")
    stderr.add_argument("--watch", action="store_true", help="show the canvas on the terminal while it is denoised")
    about = f"with --watch, how long each step is seen at least (default: {WATCH_DELAY})"
    add("--watch-delay", type=float, metavar="SECONDS", help=about)
    about = "keep encoded prompts in FOLDER, so that the next run with the same beginning does not encode it again"
    add("--prefix-cache", metavar="FOLDER", help=about)
    _add_many(parser)
    _add_conversation(parser)
    _add_steering(parser)
    _add_causal(parser)
    add_settings(parser)
    add_distributed(parser)
    return parser


def _add_many(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many prompts (see docs/generating.md)").add_argument
    add("--prompts", metavar="FILE", help="answer each line of a JSONL file, several at a time; - reads it from stdin")
    add("--output", metavar="FILE", help="where the answers go, a line of JSON each (default: stdout)")
    add("--resume", action="store_true", help="go on with --output")
    add("--force", action="store_true", help="start --output over")
    add("--max-batch", type=int, metavar="N", help=f"texts that are written at a time (default: {MAX_ROWS})")


def _add_conversation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("thinking, tools and ends (see docs/conversations.md)").add_argument
    add("--thinking", action="store_true", help="let the model think before it answers")
    add("--show-thoughts", action="store_true", help="print thoughts on stderr")
    add("--tools", metavar="FILE", help="JSON list of function schemas that the model may call; calls come as JSON")
    add("--tool-choice", metavar="WHICH", help="auto, none, required, or the name of the tool to call (default: auto)")
    add("--stop", metavar="TEXT", action="append", help="end the answer where this text would stand; may be repeated")
    add("--json-schema", metavar="FILE", help="answer with JSON that follows the schema in FILE (docs/structured.md)")


def _add_steering(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("steering (gaps and drafts, see docs/steering.md)").add_argument
    add("--template", metavar="T", help="text with gaps: {10} holds ten tokens, {} at the end as many as it takes")
    add("--init", metavar="TEXT", help="start the first canvas from this draft instead of noise")
    add("--noise", type=float, metavar="SHARE", help="share of the draft that is replaced by noise (default: 0)")
    about = (
        "write nothing: print how likely each of these labels is in a slot {?} of T (once for all slots, or for each)"
    )
    add("--choose", metavar="A,B", action="append", help=about)
    add(
        "--num-samples", type=int, default=1, metavar="N", help="N texts at once, with seeds from --seed on, best first"
    )


def _add_causal(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the causal mode of the same weights (see docs/causal.md)").add_argument
    about = "denoise canvases, write one token after another, or whichever is better (default: diffusion)"
    add("--mode", choices=MODES, default="diffusion", help=about)
    about = "denoise tokens again that the causal mode does not believe (an experiment)"
    add("--repair", action="store_true", help=about)
    add("--causal-log-p", action="store_true", help="tell how likely each token is by the causal mode; with --json")


def parse(argv: list[str] | None) -> tuple[Request, Options]:
    """What was typed, checked."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.seed <= MAX_SEED:
        parser.error(f"--seed must be between 0 and 2^63 - 1, got {args.seed}")
    try:
        settings_of(args)
    except DGemmaError as error:
        parser.error(str(error))
    _check_steering(parser, args)
    _check_causal(parser, args)
    _check_many(parser, args)
    args.plan = plan_of(parser, args)
    args.prompt = _typed_prompt(parser, args) if args.prompts is None else ""
    request = request_of(args)
    return request, options_of(args, request)


def _typed_prompt(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The prompt, from wherever it was given; a line's end on stdin is the shell's, not the prompt's."""
    if args.prompt is None and not args.words:
        parser.error("there is no prompt; give --prompt TEXT, or - to read it from stdin")
    if args.prompt is not None and args.words:
        parser.error(f"the prompt is given twice, as --prompt and as {' '.join(args.words)}; quote a text with spaces")
    prompt = " ".join(args.words) if args.prompt is None else args.prompt
    if prompt == "-":
        prompt = read_stdin(args.plan).decode("utf-8", "surrogateescape")
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt.strip():
        parser.error("the prompt is empty; give a text")
    return prompt


def _check_steering(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes together, as usage errors."""
    if args.noise is not None and args.init is None:
        parser.error("--noise needs --init, the draft to put noise on")
    if args.noise is not None and not 0 <= args.noise <= 1:
        parser.error(f"--noise must be between 0 and 1, got {args.noise}")
    if args.watch_delay is not None and not (args.watch and 0 <= args.watch_delay <= 60):
        parser.error(f"--watch-delay goes with --watch and takes 0 to 60 seconds, got {args.watch_delay}")
    if args.num_samples < 1:
        parser.error(f"--num-samples must be at least 1, got {args.num_samples}")
    if args.json_schema is not None and args.trace is not None:
        parser.error("--json-schema does not go with --trace; leave one out")
    what = "--choose" if args.choose is not None else "--num-samples" if args.num_samples > 1 else None
    others = {"--watch": args.watch, "--trace": args.trace is not None}
    others |= {"--causal-log-p": args.causal_log_p, "--mode": args.mode != "diffusion", "--repair": args.repair}
    if args.choose is not None:
        others |= {"--init": args.init is not None, "--num-samples": args.num_samples > 1}
    for other, is_given in others.items():
        if what and is_given:
            parser.error(f"{what} does not go with {other}; leave one out")


def _check_causal(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes with the causal mode, as usage errors."""
    for option, is_given in {f"--mode {args.mode}": args.mode != "diffusion", "--repair": args.repair}.items():
        if is_given and args.trace is not None:
            parser.error(f"{option} does not go with --trace, which records canvases as denoised; leave one out")
    if args.mode != "diffusion" and args.repair:
        parser.error(f"--mode {args.mode} does not go with --repair; leave one out")
    if args.causal_log_p and not args.json and args.prompts is None:
        parser.error("--causal-log-p is told in JSON; add --json")


def _check_many(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes with a file of prompts, as usage errors."""
    given = {"--output": args.output, "--resume": args.resume, "--force": args.force, "--max-batch": args.max_batch}
    if args.prompts is None:
        for name, value in given.items():
            if value:
                parser.error(f"{name} goes with --prompts, a file of prompts; give one")
        return
    others = {"--prompt": args.prompt, "a prompt": args.words, "--watch": args.watch, "--trace": args.trace}
    others |= {"--choose": args.choose, "--num-samples": args.num_samples > 1, "--image": args.image}
    for name, value in others.items():
        if value:
            parser.error(f"--prompts does not go with {name}; leave one out")
    if args.resume and args.force:
        parser.error("--resume goes on and --force starts over; leave one out")
    if (args.resume or args.force) and args.output is None:
        parser.error("--resume and --force are about --output, a file; give one")
    if args.max_batch is not None and args.max_batch < 1:
        parser.error(f"--max-batch must be at least 1, got {args.max_batch}")


def request_of(args: argparse.Namespace) -> Request:
    """The request that was typed."""
    plan = CanvasPlan(
        () if args.template is None else args.template, () if args.init is None else args.init, args.noise or 0.0,
        args.seed,
    )  # fmt: skip
    return Request(
        _prompt(args, args.prompt), settings=settings_of(args), seed=args.seed,
        canvas=() if args.choose is not None else plan, samples=args.num_samples,
        chat_template=not args.no_chat_template, thinking=args.thinking,
        tools=() if args.tools is None else read_tools(args.tools), tool_choice=args.tool_choice or "auto",
        stop=args.stop or (), response_format=None if args.json_schema is None else read_schema(args.json_schema),
        mode=args.mode, causal_log_p=args.causal_log_p, repair=args.repair, image_tokens=args.image_tokens,
        images=() if args.system is not None else args.image or (),
    )  # fmt: skip


def _prompt(args: argparse.Namespace, prompt: str) -> Prompt:
    if args.system is None:
        return prompt
    if args.no_chat_template:
        raise DGemmaError("--system needs the chat template; drop --no-chat-template")
    images = [{"type": "image", "image": path} for path in args.image or ()]
    content = [*images, {"type": "text", "text": prompt}] if images else prompt
    return [{"role": "system", "content": args.system}, {"role": "user", "content": content}]


def options_of(args: argparse.Namespace, request: Request) -> Options:
    """What was typed beside the request."""
    many = None
    if args.prompts is not None:
        asked = read_prompts(args.prompts, request, lambda prompt: _prompt(args, prompt), args.plan)
        many = Many(asked, args.output, args.resume, args.force, MAX_ROWS if args.max_batch is None else args.max_batch)
    choices = args.choose and [[label.strip() for label in own.split(",")] for own in args.choose]
    template = "{?}" if args.template is None else args.template
    delay = WATCH_DELAY if args.watch_delay is None else args.watch_delay
    shown = args.json, args.quiet, args.watch, delay, args.show_thoughts, args.prefix_cache
    return Options(args.model, template, choices, args.trace, *shown, args.dtype, args.wire, many, args.plan)

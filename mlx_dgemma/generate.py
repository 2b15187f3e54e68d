"""Command line: text on stdout, all else on stderr; exit 0, 1 (failed), 2 (bad usage)."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_writable
from mlx_dgemma.tasks import TASKS
from mlx_dgemma.terminal.cli import Parser, exit_code
from mlx_dgemma.terminal.options import add_model, add_settings, settings_of
from mlx_dgemma.terminal.result import as_json, summary
from mlx_dgemma.text.request import MAX_SEED, CanvasPlan, Prompt, Request

if TYPE_CHECKING:
    from mlx_dgemma.terminal.progress import ProgressLine
    from mlx_dgemma.text.engine import Engine
    from mlx_dgemma.text.events import TextCanvas
    from mlx_dgemma.trace.recorder import Recorder


@dataclass(frozen=True)
class Options:
    """What the command line asks for beside the request.

    Attributes:
        model: checkpoint folder or hub repository; None is the embedded one.
        template: with slots for the labels of `choices`.
        choices: labels, for all slots or a list a slot; None writes a text.
        trace: file to record the run in.
        json, quiet, watch: how it is shown.
    """

    model: str | None
    template: str
    choices: list[list[str]] | None
    trace: str | None
    json: bool
    quiet: bool
    watch: bool


def build_parser() -> argparse.ArgumentParser:
    tasks = "\n".join(f"  {task.prompt(task.example):24} {task.about}" for task in TASKS.values())
    parser = Parser(
        prog="dgemma-generate",
        description="Generate text with DiffusionGemma: whole canvases of tokens are denoised at once.",
        epilog=f"Without --model a small embedded checkpoint answers, which knows these tasks:\n{tasks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    add = parser.add_argument
    add("--prompt", metavar="P", required=True, help="the user's text; - reads it from stdin")
    add("--system", metavar="S", help="a system turn before the prompt")
    add("--no-chat-template", action="store_true", help="give the prompt to the model as it is")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--trace", metavar="FILE", help="record every denoising step in FILE (.npz), which dgemma-report shows")
    stderr = parser.add_mutually_exclusive_group()
    stderr.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    stderr.add_argument("--watch", action="store_true", help="show the canvas on the terminal while it is denoised")
    _add_steering(parser)
    add_settings(parser)
    return parser


def _add_steering(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("steering (gaps and drafts, see the README)").add_argument
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


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.seed <= MAX_SEED:
        parser.error(f"--seed must be between 0 and 2^63 - 1, got {args.seed}")
    try:
        settings_of(args)
    except DGemmaError as error:
        parser.error(str(error))
    _check_steering(parser, args)
    if args.prompt == "-":
        args.prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not args.prompt.strip():
        parser.error("the prompt is empty; give a text")
    return exit_code(lambda: run(request_of(args), options_of(args)), "interrupted before the first canvas was begun")


def _check_steering(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What goes together, as usage errors."""
    if args.noise is not None and args.init is None:
        parser.error("--noise needs --init, the draft to put noise on")
    if args.noise is not None and not 0 <= args.noise <= 1:
        parser.error(f"--noise must be between 0 and 1, got {args.noise}")
    if args.num_samples < 1:
        parser.error(f"--num-samples must be at least 1, got {args.num_samples}")
    what = "--choose" if args.choose is not None else "--num-samples" if args.num_samples > 1 else None
    others = {"--watch": args.watch, "--trace": args.trace is not None}
    if args.choose is not None:
        others |= {"--init": args.init is not None, "--num-samples": args.num_samples > 1}
    for other, is_given in others.items():
        if what and is_given:
            parser.error(f"{what} does not go with {other}; leave one out")


def request_of(args: argparse.Namespace) -> Request:
    """The request that was typed."""
    plan = CanvasPlan(
        () if args.template is None else args.template, () if args.init is None else args.init, args.noise or 0.0,
        args.seed,
    )  # fmt: skip
    return Request(
        _prompt(args), settings=settings_of(args), seed=args.seed, canvas=() if args.choose is not None else plan,
        samples=args.num_samples, chat_template=not args.no_chat_template,
    )  # fmt: skip


def _prompt(args: argparse.Namespace) -> Prompt:
    if args.system is None:
        return args.prompt
    if args.no_chat_template:
        raise DGemmaError("--system needs the chat template; drop --no-chat-template")
    return [{"role": "system", "content": args.system}, {"role": "user", "content": args.prompt}]


def options_of(args: argparse.Namespace) -> Options:
    """What was typed beside the request."""
    choices = args.choose and [[label.strip() for label in own.split(",")] for own in args.choose]
    template = "{?}" if args.template is None else args.template
    return Options(args.model, template, choices, args.trace, args.json, args.quiet, args.watch)


def run(request: Request, options: Options) -> int:
    """Loads the model and does what was asked; the exit code."""
    if options.trace is not None:
        check_writable(options.trace)
    # Late, so that --help and a mistyped option answer at once.
    from mlx_dgemma.terminal.progress import ProgressLine

    progress = ProgressLine(enabled=not options.quiet)
    progress.show("loading …")
    try:
        engine = _load(options, progress)
        if options.choices is not None:
            return _choose(engine, request, options, progress)
        if request.samples > 1:
            return _samples(engine, request, options, progress)
        return _text(engine, request, options, progress)
    finally:
        progress.clear()


def _load(options: Options, progress: ProgressLine) -> Engine:
    """The engine, with a warning where the denoiser is untrained."""
    from mlx_dgemma.text.engine import Engine

    engine = Engine.load(options.model)
    if not engine.model.config.denoiser_trained and not options.quiet:
        progress.clear()
        print("warning: this denoiser is untrained (patched Gemma 4 weights); expect noise", file=sys.stderr)
    return engine


def _text(engine: Engine, request: Request, options: Options, progress: ProgressLine) -> int:
    """Streams one text and prints the summary."""
    from mlx_dgemma.text.events import TextCanvas, collect
    from mlx_dgemma.trace.recorder import Recorder, record

    stream = engine.stream(request)
    recorder = None if options.trace is None else Recorder(engine, request)
    progress.clear()
    if options.watch:
        from mlx_dgemma.terminal.watch import live_canvas

        stops = request.settings.over(engine.model.generation_config).eos_token_id
        progress = live_canvas(progress, engine.tokenizer, stops)
    done: list[TextCanvas] = []
    finish_reason = None
    try:
        for event in stream if recorder is None else record(stream, recorder):
            if isinstance(event, TextCanvas):
                done.append(event)
                progress.text("" if options.json else event.text)
            else:
                progress.step(event)
    except KeyboardInterrupt:
        finish_reason = "interrupted"
    finally:  # whatever ended the run, what was recorded is kept
        progress.clear()
        saved = _save(recorder, options.trace)
    result = collect(done, finish_reason)
    if options.json:
        print(json.dumps({**_known(engine, request), **as_json(result)}, ensure_ascii=False))
    elif result.text and not result.text.endswith("\n"):
        print()
    if not options.quiet:
        print(summary(result), file=sys.stderr)
    return 0 if saved else 1


def _save(recorder: Recorder | None, path: str | None) -> bool:
    """Writes the trace, if there is one; a failure is told, not raised, so that the result is still printed."""
    if recorder is None or path is None:
        return True
    try:
        recorder.trace().save(path)
        return True
    except DGemmaError as error:
        print(f"error: {error}", file=sys.stderr)
        return False


def _choose(engine: Engine, request: Request, options: Options, progress: ProgressLine) -> int:
    """Prints the probability of each label, slot by slot."""
    labels = options.choices or []
    if len(labels) == 1:
        labels *= max(1, options.template.count("{?}"))
    slots = engine.choose_each(request, options.template, labels)
    progress.clear()
    if options.json:
        print(json.dumps({**_known(engine, request), "choices": slots}, ensure_ascii=False))
        return 0
    for number, slot in enumerate(slots, 1):
        for label, p in slot.items():
            print(*[number][: len(slots) - 1], f"{p:.4f}", label, sep="\t")
    return 0


def _samples(engine: Engine, request: Request, options: Options, progress: ProgressLine) -> int:
    """Prints several texts for the prompt, best first; what tells them apart goes to stderr."""
    from mlx_dgemma.text.events import Sample

    samples = []
    for event in engine.stream_samples(request):
        if isinstance(event, Sample):
            samples.append(event)
        else:
            progress.step(event)
    progress.clear()
    if options.json:
        known = _known(engine, request)
        results = [{**known, **as_json(s.result), "seed": s.seed, "mean_log_p": s.mean_log_p} for s in samples]
        print(json.dumps(results, ensure_ascii=False))
        return 0
    for rank, sample in enumerate(samples, 1):
        if not options.quiet:
            about = f"{sample.mean_log_p:.3g} nats per token, {sample.result.finish_reason}"
            print(f"sample {rank} of {len(samples)}: seed {sample.seed}, {about}", file=sys.stderr, flush=True)
        print(sample.result.text.removesuffix("\n"), flush=True)
    return 0


def _known(engine: Engine, request: Request) -> dict[str, object]:
    """What every JSON object begins with."""
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
    return {"model": engine.checkpoint, "prompt": prompt, "seed": request.seed}


if __name__ == "__main__":
    sys.exit(main())

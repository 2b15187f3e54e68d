"""Command line: text on stdout, all else on stderr; exit 0, 1 (failed), 2 (bad usage)."""

import argparse
import json
import sys
from dataclasses import asdict, fields
from typing import Any

from mlx_dgemma.diffusion.settings import TOKEN_CHOICES, GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_writable
from mlx_dgemma.tasks import TASKS
from mlx_dgemma.terminal.cli import Parser, exit_code

_SETTINGS = {f.name for f in fields(GenerationConfig)}


def build_parser() -> argparse.ArgumentParser:
    tasks = "\n".join(f"  {task.prompt(task.example):24} {task.about}" for task in TASKS.values())
    parser = Parser(
        prog="dgemma-generate",
        description="Generate text with DiffusionGemma: whole canvases of tokens are denoised at once.",
        epilog=f"Without --model a small embedded checkpoint answers, which knows these tasks:\n{tasks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="M", help="checkpoint folder or hub repository (default: the embedded checkpoint)")
    add("--prompt", metavar="P", required=True, help="the user's text; - reads it from stdin")
    add("--system", metavar="S", help="a system turn before the prompt")
    add("--no-chat-template", action="store_true", help="give the prompt to the model as it is")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--trace", metavar="FILE", help="record every denoising step in FILE (.npz), which dgemma-report shows")
    stderr = parser.add_mutually_exclusive_group()
    stderr.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    stderr.add_argument("--watch", action="store_true", help="show the canvas on the terminal while it is denoised")
    steering = parser.add_argument_group("steering (gaps and drafts, see the README)")
    add = steering.add_argument
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
    sampler = parser.add_argument_group("sampler (defaults: the checkpoint's generation_config.json)")
    add = sampler.add_argument
    add("--max-tokens", dest="max_new_tokens", type=int, metavar="N", help="length of the text (canvases are whole)")
    add("--max-denoising-steps", type=int, metavar="N", help="denoising steps per canvas, at most")
    add("--entropy-bound", type=float, metavar="NATS", help="larger accepts more tokens a step")
    add("--t-min", type=float, metavar="T", help="temperature at the end of the schedule")
    add("--t-max", type=float, metavar="T", help="temperature at its start")
    add("--confidence-threshold", type=float, metavar="NATS", help="mean entropy below which a canvas may stop")
    add("--stability-threshold", type=int, metavar="N", help="previous steps that must agree before it stops")
    add("--soft-embedding-cutoff", type=float, metavar="NATS", help="leave unlikely tokens out of soft embeddings")
    add("--token-choice", choices=TOKEN_CHOICES, help="draw the proposed tokens, or take the most likely ones")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed must be between 0 and 2^63 - 1, got {args.seed}")
    try:
        given = {name: value for name, value in vars(args).items() if name in _SETTINGS and value is not None}
        config = GenerationConfig(**given)
    except DGemmaError as error:
        parser.error(str(error))
    _check_steering(parser, args)
    if args.prompt == "-":
        args.prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not args.prompt.strip():
        parser.error("the prompt is empty; give a text")
    return exit_code(lambda: run(args, config), "interrupted before the first canvas was begun")


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


def run(args: argparse.Namespace, config: GenerationConfig) -> int:
    """Loads the model, streams the text, prints the summary."""
    if args.trace is not None:
        check_writable(args.trace)
    # Late, so that --help and a mistyped option answer at once.
    from mlx_dgemma.terminal.progress import ProgressLine
    from mlx_dgemma.text.generation import collect

    progress = ProgressLine(enabled=not args.quiet)
    progress.show("loading …")
    try:
        model, tokenizer = _load(args, progress)
        if args.choose is not None:
            return _choose(args, model, tokenizer, progress)
        if args.num_samples > 1:
            return _samples(args, config, model, tokenizer, progress)
        stream, recorder = _start(args, config, model, tokenizer)
    finally:
        progress.clear()
    if args.watch:
        from mlx_dgemma.terminal.watch import live_canvas

        progress = live_canvas(progress, tokenizer, config.over(model.generation_config).eos_token_id)
    done, finish_reason = [], None
    try:
        for event in stream:
            _show(event, progress, done, silent=args.json)
    except KeyboardInterrupt:
        finish_reason = "interrupted"
    finally:  # whatever ended the run, what was recorded is kept
        progress.clear()
        saved = _save(recorder, args.trace)
    result = collect(done, finish_reason)
    if args.json:
        print(json.dumps(_json_result(args, result), ensure_ascii=False))
    elif result.text and not result.text.endswith("\n"):
        print()
    if not args.quiet:
        print(_summary(result), file=sys.stderr)
    return 0 if saved else 1


def _load(args: argparse.Namespace, progress: Any) -> tuple[Any, Any]:
    """Model and tokenizer, with a warning where the denoiser is untrained."""
    from mlx_dgemma.checkpoint.loading import load

    model, tokenizer = load(args.model)
    if not model.config.denoiser_trained and not args.quiet:
        progress.clear()
        print("warning: this denoiser is untrained (patched Gemma 4 weights); expect noise", file=sys.stderr)
    return model, tokenizer


def _choose(args: argparse.Namespace, model: Any, tokenizer: Any, progress: Any) -> int:
    """Prints the probability of each label, slot by slot."""
    from mlx_dgemma.text.choose import choose_each

    template = "{?}" if args.template is None else args.template
    labels = [[label.strip() for label in own.split(",")] for own in args.choose]
    if len(labels) == 1:
        labels *= max(1, template.count("{?}"))
    given = {"seed": args.seed, "chat_template": not args.no_chat_template}
    slots = choose_each(model, tokenizer, _prompt(args), template, labels, **given)
    progress.clear()
    if args.json:
        known = {"model": args.model or "embedded", "prompt": args.prompt, "seed": args.seed}
        print(json.dumps({**known, "choices": slots}, ensure_ascii=False))
        return 0
    for number, slot in enumerate(slots, 1):
        for label, p in slot.items():
            print(*[number][: len(slots) - 1], f"{p:.4f}", label, sep="\t")
    return 0


def _samples(args: argparse.Namespace, config: GenerationConfig, model: Any, tokenizer: Any, progress: Any) -> int:
    """Prints several texts for the prompt, best first; what tells them apart goes to stderr."""
    from mlx_dgemma.text.samples import Sample, stream_samples

    given = {"n": args.num_samples, "seed": args.seed, "chat_template": not args.no_chat_template}
    plan = _plan(args, model, tokenizer, config.over(model.generation_config).eos_token_id)
    samples = []
    for event in stream_samples(model, tokenizer, _prompt(args), config, canvas=plan, **given):
        if isinstance(event, Sample):
            samples.append(event)
        else:
            progress.step(event)
    progress.clear()
    if args.json:
        results = [{**_json_result(args, s.result), "seed": s.seed, "mean_log_p": s.mean_log_p} for s in samples]
        print(json.dumps(results, ensure_ascii=False))
        return 0
    for rank, sample in enumerate(samples, 1):
        if not args.quiet:
            about = f"{sample.mean_log_p:.3g} nats per token, {sample.result.finish_reason}"
            print(f"sample {rank} of {len(samples)}: seed {sample.seed}, {about}", file=sys.stderr, flush=True)
        print(sample.result.text.removesuffix("\n"), flush=True)
    return 0


def _start(args: argparse.Namespace, config: GenerationConfig, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The stream of events, and the recorder it passes through if a trace is wanted."""
    from mlx_dgemma.text.generation import stream_generate
    from mlx_dgemma.trace.recorder import Recorder, record

    given = {"seed": args.seed, "chat_template": not args.no_chat_template}
    plan = _plan(args, model, tokenizer, config.over(model.generation_config).eos_token_id)
    stream = stream_generate(model, tokenizer, _prompt(args), config, canvas=plan, **given)
    if args.trace is None:
        return stream, None
    recorder = Recorder(model, tokenizer, _prompt(args), config, model_id=args.model or "embedded", **given)
    return record(stream, recorder), recorder


def _plan(args: argparse.Namespace, model: Any, tokenizer: Any, end: list[int]) -> Any:
    """What the canvases start from, by the options."""
    from mlx_dgemma.text.template import CanvasPlan, parse_draft, parse_template

    canvas = model.config.canvas_length
    given = () if args.template is None else parse_template(tokenizer, args.template, end, canvas)
    draft = () if args.init is None else parse_draft(tokenizer, args.init, end, canvas)
    return CanvasPlan(given, draft, args.noise or 0.0, args.seed)


def _show(event: Any, progress: Any, done: list[Any], *, silent: bool) -> None:
    """Puts an event where the user sees it; committed canvases are kept in `done`."""
    from mlx_dgemma.text.generation import TextCanvas

    if isinstance(event, TextCanvas):
        done.append(event)
        progress.text("" if silent else event.text)
    else:
        progress.step(event)


def _save(recorder: Any, path: str) -> bool:
    """Writes the trace, if there is a recorder; a failure is told, not raised, so that the result is still printed."""
    try:
        if recorder is not None:
            recorder.trace().save(path)
        return True
    except DGemmaError as error:
        print(f"error: {error}", file=sys.stderr)
        return False


def _prompt(args: argparse.Namespace) -> Any:
    if args.system is None:
        return args.prompt
    if args.no_chat_template:
        raise DGemmaError("--system needs the chat template; drop --no-chat-template")
    return [{"role": "system", "content": args.system}, {"role": "user", "content": args.prompt}]


def _json_result(args: argparse.Namespace, result: Any) -> dict[str, Any]:
    stats = result.stats
    return {
        "model": args.model or "embedded",
        "prompt": args.prompt,
        "seed": args.seed,
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "steps_per_canvas": result.steps_per_canvas,
        "stats": {
            **asdict(stats),
            "prompt_tokens_per_second": stats.prompt_tokens_per_second,
            "tokens_per_second": stats.tokens_per_second,
            "tokens_per_forward": stats.tokens_per_forward,
        },
    }


def _summary(result: Any) -> str:
    stats, steps = result.stats, " + ".join(map(str, result.steps_per_canvas)) or "0"
    return "\n".join((
        f"prompt:  {stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s",
        f"text:    {stats.tokens} tokens in {stats.canvases} canvas{'es' * (stats.canvases != 1)}, "
        f"{stats.tokens_per_second:.1f} tokens/s ({result.finish_reason})",
        f"steps:   {steps}, {stats.tokens_per_forward:.1f} tokens per forward",
        f"memory:  {stats.peak_memory / 1e9:.3f} GB at most",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""Command line: text on stdout, all else on stderr; exit 0, 1 (failed), 2 (bad usage)."""

from __future__ import annotations

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.files import check_output, check_writable
from mlx_dgemma.tasks.embedded import LEARNED, is_known
from mlx_dgemma.terminal.arguments import Many, Options, parse
from mlx_dgemma.terminal.cli import exit_code, say
from mlx_dgemma.terminal.options import REAL
from mlx_dgemma.terminal.plain import harmless, line
from mlx_dgemma.terminal.prompts import Answers
from mlx_dgemma.terminal.result import as_json, empty, ended, summary
from mlx_dgemma.text.messages import text_of
from mlx_dgemma.text.request import Request

if TYPE_CHECKING:
    from mlx_dgemma.distributed.session import Session
    from mlx_dgemma.terminal.progress import ProgressLine
    from mlx_dgemma.text.engine import Engine
    from mlx_dgemma.text.events import GenerationResult, TextCanvas
    from mlx_dgemma.trace.recorder import Recorder


UNKNOWN = (
    f"note: the embedded checkpoint is a demonstration that knows {len(LEARNED)} tasks (--help lists them), and this "
    f"is none of them; for anything else: --model {REAL}"
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted before anything was written"
    return exit_code(lambda: run(*parse(argv)), told, ends_process=argv is None)


def run(request: Request, options: Options) -> int:
    """Does what was asked, alone or with other ranks; the exit code."""
    if options.distributed is None:
        return _run(request, options, None)
    with signals.uninterrupted():
        from mlx_dgemma.distributed.session import only_first, together
    with together(options.distributed) as session:
        if session is None:
            say("note: --distributed: this is the only process; mlx.launch starts more (docs/distributed.md)")
            return _run(request, options, None)
        with only_first(session):
            session.code = _run(request, options if session.is_first else options.silent(), session)
        return session.code


def _run(request: Request, options: Options, session: Session | None) -> int:
    """Loads the model and writes."""
    if options.trace is not None:
        check_writable(options.trace)
    if options.many is not None and options.many.output is not None:
        check_output(Path(options.many.output), resume=options.many.resume, force=options.many.force)
    # Late, so that --help and a mistyped option answer at once.
    with signals.uninterrupted():
        from mlx_dgemma.terminal.progress import ProgressLine
        from mlx_dgemma.terminal.start import load_engine, share

    progress = ProgressLine(enabled=not options.quiet)
    progress.show("loading …")
    try:
        engine = load_engine(options.model, options.dtype, wire=options.wire, quiet=options.quiet)
        if session is not None:
            progress.clear()
            share(session, engine, options.model, quiet=options.quiet)
        engine = _remembering(engine, options, progress)
        if options.many is not None:
            return _many(engine, options.many, options, progress, session)
        prepared = engine.prepare(request)  # what cannot be done is told before what will not be right
        if session is not None:
            session.compare(prepared)
        if engine.checkpoint == "embedded" and not options.quiet and not is_known(_user(request)):
            progress.clear()
            say(UNKNOWN)
        answer = _choose if options.choices is not None else _samples if request.samples > 1 else _text
        code = answer(engine, request, options, progress)
        _kept(engine)
        return code
    finally:
        progress.clear()


def _kept(engine: Engine) -> None:
    """Keeps what was encoded; a failure is told, as the text is there."""
    try:
        if engine.prefixes is not None:
            engine.prefixes.save()
    except DGemmaError as error:
        say(f"note: {error}")


def _remembering(engine: Engine, options: Options, progress: ProgressLine) -> Engine:
    """The engine, with what earlier runs encoded."""
    if options.prefix_cache is None:
        return engine
    from mlx_dgemma.terminal.start import remembering

    def tell(line: str) -> None:
        progress.clear()
        say(line)

    return remembering(engine, options.prefix_cache, tell)


def _text(engine: Engine, request: Request, options: Options, progress: ProgressLine) -> int:
    """Streams one text and prints the summary."""
    from mlx_dgemma.text.events import TextCanvas, collect
    from mlx_dgemma.trace.recorder import Recorder, record

    stream = engine.stream(request)
    recorder = None if options.trace is None else Recorder(engine, request)
    progress.clear()
    if options.watch:
        from mlx_dgemma.terminal.watch import live_canvas

        stops = request.settings.over(engine.model.generation_config).stops
        progress = live_canvas(progress, engine.tokenizer, stops, options.watch_delay)
    done: list[TextCanvas] = []
    finish_reason = None
    try:
        for event in stream if recorder is None else record(stream, recorder):
            signals.check()
            if isinstance(event, TextCanvas):
                done.append(event)
                progress.text("" if options.json else event.text)
            else:
                progress.step(event)
    except KeyboardInterrupt:
        finish_reason = "interrupted"
    finally:  # whatever ended the run, what was recorded is kept
        signals.hold()
        with suppress(OSError):  # the terminal may have gone away
            progress.clear()
        saved = _save(recorder, options)
    result = collect(done, finish_reason)
    if options.json:
        print(json.dumps({**_known(engine, request), **as_json(result)}, ensure_ascii=False))
    else:
        _end(result)
    _tell(result, options)
    return signals.exit_code() if finish_reason else 0 if saved else 1


def _end(result: GenerationResult) -> None:
    """The end of the text's last line, and a line of JSON for each call."""
    if result.text and not result.text.endswith("\n"):
        print()
    for call in result.tool_calls:
        print(json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False))


def _tell(result: GenerationResult, options: Options) -> None:
    """A summary; and, even when quiet, a word on a text that holds nothing."""
    if options.show_thoughts and result.thought and not options.json:
        print(f"thought: {harmless(result.thought)}", file=sys.stderr)
    if nothing := empty(result):
        say(f"note: {nothing}")
    if not options.quiet:
        if end := ended(result):
            say(f"note: {end}")
        print(summary(result), file=sys.stderr)


def _save(recorder: Recorder | None, options: Options) -> bool:
    """Writes the trace, if there is one; a failure is told, not raised, so that the result is still printed."""
    if recorder is None or options.trace is None:
        return True
    try:
        recorder.trace().save(options.trace)
    except DGemmaError as error:
        say(f"error: {error}")
        return False
    if not options.quiet:
        say(f"trace:   {options.trace}, which dgemma-report shows")
    return True


def _choose(engine: Engine, request: Request, options: Options, progress: ProgressLine) -> int:
    """Prints the probability of each label, slot by slot."""
    labels = options.choices or []
    if len(labels) == 1:
        labels *= max(1, options.template.count("{?}"))
    slots = engine.choose_each(request, options.template, labels)
    signals.hold()  # all is there, and is told
    progress.clear()
    if options.json:
        print(json.dumps({**_known(engine, request), "choices": slots}, ensure_ascii=False))
        return 0
    for number, slot in enumerate(slots, 1):
        for label, p in slot.items():
            print(*[number][: len(slots) - 1], f"{p:.4f}", line(label), sep="\t")
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
    signals.hold()  # all are there, and are told
    progress.clear()
    if options.json:
        known = _known(engine, request)
        results = [{**known, **as_json(s.result), "seed": s.seed, "mean_log_p": s.mean_log_p} for s in samples]
        print(json.dumps(results, ensure_ascii=False))
        return 0
    for rank, sample in enumerate(samples, 1):
        if not options.quiet:
            about = f"{sample.mean_log_p:.3g} nats per token, {sample.result.finish_reason}"
            say(f"sample {rank} of {len(samples)}: seed {sample.seed}, {about}")
        progress.text(sample.result.text.removesuffix("\n") + "\n")
    _tell(samples[0].result, options)
    return 0


def _many(
    engine: Engine, many: Many, options: Options, progress: ProgressLine, session: Session | None
) -> int:  # fmt: skip
    """Writes a line of JSON for each of many prompts, as they finish; those that cannot be answered are told."""
    from mlx_dgemma.text.events import TextCanvas, collect

    answers = Answers(many.output, engine.checkpoint)
    left = answers.open(many.asked, resume=many.resume)
    if session is not None:
        left = [many.asked[number] for number in session.from_first([many.asked.index(own) for own in left])]
    total, done, failed = len(many.asked), len(many.asked) - len(left), 0
    canvases: dict[int, list[TextCanvas]] = {}
    try:
        for number, event in engine.stream_many((own.request for own in left), max_rows=many.max_batch):
            signals.check()
            if isinstance(event, TextCanvas):
                canvases.setdefault(number, []).append(event)
                if event.finish_reason is not None:
                    own = left[number]
                    with signals.uninterrupted():
                        answers.write(own, {**_known(engine, own.request), **as_json(collect(canvases.pop(number)))})
                    done += 1
            elif isinstance(event, DGemmaError):
                failed += 1
                progress.clear()
                say(f"error: line {left[number].number}: {event}")
            progress.show(f"{done} of {total} prompts are answered")
    except KeyboardInterrupt:
        signals.hold()
        progress.clear()
        goes_on = "" if many.output is None else f" in {many.output}, with which --resume goes on"
        say(f"interrupted; {done} of {total} answers are there{goes_on}")
        return signals.exit_code()
    finally:
        answers.close()
    progress.clear()
    _kept(engine)
    if not options.quiet:
        say(f"{done} of {total} prompts are answered")
    return 1 if failed else 0


def _known(engine: Engine, request: Request) -> dict[str, object]:
    """What every JSON object begins with."""
    return {"model": engine.checkpoint, "prompt": _user(request), "seed": request.seed}


def _user(request: Request) -> str:
    """What the user's prompt was, without its images."""
    last = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]
    content = last["content"] if isinstance(last, dict) else last
    return text_of([part for part in content if "text" in part] if isinstance(content, list) else content)


if __name__ == "__main__":
    sys.exit(main())

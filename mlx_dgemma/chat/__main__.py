"""Command line: a conversation in the terminal; exit 0, 1 (failed), 2 (bad usage)."""

from __future__ import annotations

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from mlx_dgemma.errors import ContextOverflow, DGemmaError
from mlx_dgemma.terminal.arguments import WATCH_DELAY
from mlx_dgemma.terminal.cli import Parser, exit_code, say
from mlx_dgemma.terminal.inputs import read_tools
from mlx_dgemma.terminal.options import add_image_tokens, add_model, add_settings, settings_of

if TYPE_CHECKING:
    from mlx_dgemma.chat.commands import Chat
    from mlx_dgemma.chat.session import Question
    from mlx_dgemma.text.engine import Engine
    from mlx_dgemma.text.events import GenerationResult

ALONE = "the embedded checkpoint answers each turn by itself, and knows seven tasks: spell 42, roman 1994, upper abc, …"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dgemma-chat", description="Talk with DiffusionGemma in the terminal; /help lists commands.")
    add_model(parser)
    add = parser.add_argument
    add("--system", "--system-prompt", metavar="S", help="a system turn before the conversation")
    add("--thinking", action="store_true", help="let the model think before it answers")
    add("--tools", metavar="FILE", help="JSON list of function schemas that the model may call; calls are shown")
    add("--image", metavar="PATH", action="append", help="an image for the first question; may be repeated")
    add_image_tokens(parser)
    add("--load", metavar="FILE", help="go on with a conversation that /save wrote")
    add("--seed", type=int, default=0, help="of the noise of the first turn (default: 0)")
    add("--prefix-cache", metavar="FOLDER", help="keep encoded prompts in FOLDER, for the next conversation")
    add("--no-watch", dest="watch", action="store_false", help="a line of progress instead of the canvas")
    add_settings(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        settings_of(args)
    except DGemmaError as error:
        parser.error(str(error))
    return exit_code(lambda: run(args), "interrupted", ends_process=argv is None)


def run(args: argparse.Namespace) -> int:
    """Loads the model and talks until there is nothing more to say; the exit code."""
    with signals.uninterrupted():
        from mlx_dgemma.chat.commands import Chat
        from mlx_dgemma.chat.images import attach
        from mlx_dgemma.chat.line import reader
        from mlx_dgemma.chat.session import Session
        from mlx_dgemma.chat.show import dim
        from mlx_dgemma.terminal.start import load_engine, remembering
    tools = () if args.tools is None else tuple(read_tools(args.tools))
    engine = remembering(load_engine(args.model, args.dtype, wire=args.wire), args.prefix_cache, say)
    is_embedded = engine.checkpoint == "embedded"
    session = Session(
        engine.checkpoint, is_embedded, settings_of(args), args.seed, args.thinking, tools, args.system,
        image_tokens=args.image_tokens,
    )  # fmt: skip
    if args.load is not None and (note := session.load(args.load)):
        say(f"note: {note}")
    session.request("x")  # a seed that is none is told now
    chat, read = Chat(session, partial(attach, engine.model)), reader()
    attached = chat.attach(args.image or ())
    dim(f"{engine.checkpoint} · /help lists commands, Ctrl-D leaves" + (f"\n{ALONE}" if is_embedded else ""))
    if attached:
        dim(attached)
    delay = WATCH_DELAY if is_embedded else 0.0
    while not chat.is_over and (typed := read()) is not None:
        _turn(engine, chat, typed, args.watch, delay)
    if engine.prefixes is not None:
        engine.prefixes.save()
    return 0


def _turn(engine: Engine, chat: Chat, typed: str, watch: bool, delay: float) -> None:
    """What a line says, and the answer if it asks; what goes wrong is a line, and the conversation stays."""
    from mlx_dgemma.chat.commands import heed
    from mlx_dgemma.chat.show import dim

    question: Question | None = typed
    try:
        if told := heed(chat, typed):
            dim(told)
        if chat.ask is not None or chat.goes_on:
            question, chat.ask, chat.goes_on = chat.ask, None, False
            _answer(engine, chat, question, watch, delay)
            chat.answered(question)
    except DGemmaError as error:
        if question is None:
            chat.session.take_results_back()
        is_full = isinstance(error, ContextOverflow) and chat.session.messages
        room = "; /undo or /clear makes room" if is_full else ""
        kept = "; images stay attached, /image off drops them" if chat.images and isinstance(question, list) else ""
        say(f"error: {error}{room}{kept}")


def _answer(engine: Engine, chat: Chat, question: Question | None, watch: bool, delay: float) -> None:
    """Asks, shows what comes, and keeps it; Ctrl-C keeps what is committed."""
    from mlx_dgemma.chat.show import Shown, dim, figures
    from mlx_dgemma.text.events import TextCanvas, collect
    from mlx_dgemma.trace.recorder import Recorder, record

    request = chat.session.request(question)
    stream = engine.stream(request)
    recorder = None if chat.trace is None else Recorder(engine, request)
    stops = request.settings.over(engine.model.generation_config).stops
    shown = Shown(engine.tokenizer, stops, watch=watch, delay=delay)
    done: list[TextCanvas] = []
    reason = None
    try:
        for event in stream if recorder is None else record(stream, recorder):
            signals.check()
            if isinstance(event, TextCanvas):
                done.append(event)
                shown.canvas(event)
            else:
                shown.step(event)
    except KeyboardInterrupt:
        reason = "interrupted"
        if not signals.forgive():
            signals.hold()
            shown.end(collect(done, reason))
            raise
    result = collect(done, reason)
    shown.end(result)
    chat.session.keep(question, result)
    chat.told = figures(result)
    if recorder is not None and chat.trace is not None:
        path, chat.trace = chat.trace, None
        recorder.trace().save(path)
        dim(f"trace: {path}")
    dim(_about(result, chat.told))


def _about(result: GenerationResult, told: str) -> str:
    from mlx_dgemma.terminal.result import empty, ended

    notes = [note for note in (empty(result), ended(result)) if note]
    return "\n".join([*(f"note: {note}" for note in notes), told])


if __name__ == "__main__":
    sys.exit(main())

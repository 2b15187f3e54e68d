"""Command line of the converter. The plan goes to stdout (with --dry-run), all else to stderr."""

from mlx_dgemma.terminal import signals

if __name__ == "__main__":
    signals.begin()  # before the other imports, which take a moment

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.terminal.cli import Lines, Parser, exit_code

from .recipes import ABOUT, DEFAULT, FLOATS, KEEP, MODES, RECIPES, Format, Rules, parse_override, rules_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from .plan import Plan
    from .source import Source


def build_parser() -> argparse.ArgumentParser:
    recipes = "\n".join(f"  {name:14} {about}" for name, about in ABOUT.items())
    parser = Parser(
        prog="dgemma-convert",
        description="Convert a Gemma MoE checkpoint into an MLX folder.",
        epilog=f"recipes (norms, scalars and the vision tower stay as they are):\n{recipes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--hf-path", "--model", metavar="S", required=True, help="source: a folder or a hub repository")
    add("--mlx-path", metavar="D", default="mlx_model", help="target folder (default: mlx_model)")
    add("--revision", help="branch, tag or commit of the source repository")
    add("-q", "--quantize", action="store_true", help=f"quantize (recipe {DEFAULT} unless --recipe says otherwise)")
    add("--recipe", choices=RECIPES, metavar="R", help="which parts get which format, see below")
    add("--q-bits", type=int, metavar="N", help="bits of the recipe's chosen part (default: 4)")
    add("--q-group-size", type=int, metavar="N", help="weights that share a scale (default: the mode's)")
    add("--q-mode", choices=MODES, help="number format (default: affine)")
    add("--override", action="append", default=[], metavar="REGEX=BITS[:GROUP[:MODE]]", help="bits 16: leave as it is")
    add("-d", "--dequantize", action="store_true", help="write a quantized source unquantized")
    add("--dtype", choices=FLOATS, help="of everything that is not quantized (default: the source's)")
    add("--dry-run", action="store_true", help="what it would come to; reads headers only, writes nothing")
    add("--verbose", action="store_true", help="list every tensor")
    add("--resume", action="store_true", help="go on with a run that ended early, if there is one")
    add("--force", action="store_true", help="replace the target")
    add("--verify", action="store_true", help="re-read the result: errors by part, KL of the logits")
    add("--upload-repo", metavar="R", help="push the result to this hub repository")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted; --resume goes on from the last finished file"
    return exit_code(lambda: run(*parse(argv)), told, ends_process=argv is None)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, str | None, Rules]:
    """The options, checked; recipe name and table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return args, *choose_rules(args)
    except DGemmaError as error:
        parser.error(str(error))


def choose_rules(args: argparse.Namespace) -> tuple[str | None, Rules]:
    """Recipe name (None: unquantized) and table from the options."""
    chosen = None
    if not (args.q_bits is args.q_group_size is args.q_mode is None):
        mode = args.q_mode or "affine"
        bits, groups = MODES[mode]
        own_bits = (4 if 4 in bits else bits[0]) if args.q_bits is None else args.q_bits
        chosen = Format(own_bits, groups[0] if args.q_group_size is None else args.q_group_size, mode)
    quantize = args.quantize or args.recipe or chosen
    if quantize and args.dequantize:
        raise DGemmaError("--dequantize and quantization exclude each other")
    if not quantize:
        return None, tuple(map(parse_override, args.override))
    recipe = args.recipe or DEFAULT
    return recipe, rules_of(recipe, chosen, tuple(args.override))


def run(args: argparse.Namespace, recipe: str | None, rules: Rules) -> int:
    """Plans, writes, verifies, publishes."""
    with signals.uninterrupted():  # late: MLX is not needed for --help or a mistyped option
        from mlx_dgemma.checkpoint.loading import resolve
        from mlx_dgemma.model.config import ModelConfig

        from .plan import make_plan
        from .source import open_source
        from .summary import details, summary
        from .target import check_apart, locked, target_of

    target = target_of(args.mlx_path)
    source = open_source(resolve(args.hf_path, args.revision))
    if source.is_quantized and not args.dequantize:
        if not rules:
            raise DGemmaError(f"{source.folder} is quantized; add -q to requantize it, or --dequantize")
        rules = (*rules, (".*", KEEP))
    plan = make_plan(source, rules, FLOATS[args.dtype] if args.dtype else None)
    if args.dry_run:
        print(*(details(plan) if args.verbose else ()), *summary(plan, ModelConfig.from_dict(source.config)), sep="\n")
        return 0
    check_apart(source.folder, target)
    with locked(target):
        convert(args, recipe, source, plan, target)
        if args.verify:
            from . import verify

            for line in verify.weight_errors(plan, target):
                print(line, file=sys.stderr)
            print(verify.logits_divergence(source, target), file=sys.stderr)
        if args.upload_repo:
            upload(target, args.upload_repo)
    return 0


def convert(args: argparse.Namespace, recipe: str | None, source: "Source", plan: "Plan", target: Path) -> None:
    """Makes the target; with --resume, what is left to do of it, which may be nothing."""
    from .folder import Provenance, is_finished, new_record, revision_of, side_files, target_config
    from .summary import details, notes
    from .target import discard, partial_of, prepare, publish
    from .write import write_weights

    options = {"dtype": args.dtype, "overrides": args.override, "quantization": plan.quantization()}
    provenance = Provenance(args.hf_path, revision_of(source.folder), recipe, options)
    record = new_record(plan, provenance)
    files = side_files(source, plan, target_config(source, plan), provenance)
    if args.resume and is_finished(target, record, files):
        discard(target, record["fingerprint"])
        print(f"{target}: finished already, by this same conversion", file=sys.stderr)
        return
    prepare(plan, record, target, resume=args.resume, force=args.force)
    for line in details(plan) if args.verbose else notes(plan.notes):
        print(line, file=sys.stderr)
    with bar(plan.nbytes) as progress:
        write_weights(plan, partial_of(target), record, progress.update)
    for name, content in files.items():
        (partial_of(target) / name).write_bytes(content)
    publish(target)
    print(f"{target}: {plan.tensors} tensors, {plan.nbytes / 1e9:.3f} GB", file=sys.stderr)


def bar(total: int) -> "tqdm | Lines":
    """Progress on stderr: bytes and time left on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        return Lines(total, lambda done: f"converted {done / 1e9:.3f} of {total / 1e9:.3f} GB")
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="converting", file=sys.stderr)


def upload(folder: Path, repo: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo)
    except (OSError, ValueError) as error:
        raise DGemmaError(f"the upload to {repo} failed: {first_line(error)}") from None
    print(f"uploaded to {repo}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Everything in the target folder beside the weights: config.json, tokenizer files, index, convert.json, model card."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_dgemma import __version__
from mlx_dgemma.checkpoint.loading import check_sums
from mlx_dgemma.diffusion.settings import SAMPLER, GenerationConfig
from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.config import published_dialect, read_config

from .plan import Plan
from .recipes import FLOATS
from .source import GENERATION, Source
from .target import RECORD, as_json, read_record

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
_OURS = ("config.json", "model.safetensors.index.json", RECORD)
_DTYPE_NAMES = {short: name for name, short in FLOATS.items()}


@dataclass(frozen=True)
class Provenance:
    """Where a conversion came from and how it was asked for."""

    source: str
    revision: str | None
    recipe: str | None
    options: dict[str, Any]


def revision_of(folder: Path) -> str | None:
    """The commit of a hub snapshot, which is its folder's name."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def new_record(plan: Plan, provenance: Provenance) -> dict[str, Any]:
    """convert.json without a finished shard."""
    tool = {"tool": f"mlx-dgemma {__version__}", "mlx": version("mlx")}
    return {**vars(provenance), **tool, "fingerprint": plan.fingerprint(), "sha256": {}}


def side_files(source: Source, plan: Plan, config: dict[str, Any], provenance: Provenance) -> dict[str, bytes]:
    """All files but the weights and convert.json, by name."""
    found = [file for pattern in _COPIED for file in source.folder.glob(pattern)]
    files = {file.name: file.read_bytes() for file in found if file.is_file() and file.name not in _OURS}
    files["config.json"] = as_json(config)
    if not source.denoiser_trained:
        files[GENERATION] = as_json(_diffusion_defaults(source))
    shards = {output.name: name for name, jobs in plan.files().items() for job in jobs for output in job.outputs}
    index = {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(shards.items()))}
    files["model.safetensors.index.json"] = as_json(index)
    files["README.md"] = model_card(plan, provenance, source).encode()
    return files


def is_finished(target: Path, record: dict[str, Any], files: dict[str, bytes]) -> bool:
    """Whether this very conversion has made the target, and nothing in it has changed since."""
    if read_record(target).get("fingerprint") != record["fingerprint"]:
        return False
    if any(not (target / name).is_file() or (target / name).read_bytes() != files[name] for name in files):
        return False
    try:
        check_sums(target)
    except DGemmaError:
        return False
    return True


def target_config(source: Source, plan: Plan) -> dict[str, Any]:
    """The source's config.json with the type of the floats and the quantization as they are now."""
    config = {k: v for k, v in source.config.items() if k not in ("quantization", "quantization_config")}
    config["dtype"] = _DTYPE_NAMES[next(job.dtype for job in plan.jobs if job.target.endswith("norm.weight"))]
    config["text_config"] = published_dialect(config["text_config"])
    quantization = plan.quantization()
    return {**config, "quantization": quantization} if quantization else config


def _diffusion_defaults(source: Source) -> dict[str, Any]:
    """generation_config.json of a patched Gemma 4: the sampler's defaults, Gemma's stop ids."""
    eos = source.config.get("eos_token_id", [])
    path = source.folder / GENERATION
    if path.is_file():
        eos = read_config(path).get("eos_token_id", eos)
    defaults = GenerationConfig(eos_token_id=eos).to_dict()
    for own in ("token_choice", "soft_embedding_cutoff"):  # not the reference's
        del defaults[own]
    bound = defaults.pop("entropy_bound")
    return {**defaults, "sampler_config": {"_cls_name": SAMPLER, "entropy_bound": bound}}


def model_card(plan: Plan, provenance: Provenance, source: Source) -> str:
    """README.md with the front matter that the hub reads."""
    base = provenance.source if re.fullmatch(r"[\w.-]+/[\w.-]+", provenance.source) else None
    front = ["library_name: mlx", "license: apache-2.0", "pipeline_tag: text-generation"]
    front += [f"base_model: {base}"] if base else []
    rows = "\n".join(
        f"| {part} | {elements:,} | {8 * nbytes / elements:.2f} | {nbytes / 1e9:.3f} |"
        for part, (elements, nbytes) in plan.by_part().items()
    )
    warning = "" if source.denoiser_trained else "\nThe denoiser is **untrained**: Gemma 4 weights with the patch.\n"
    return f"""---
{chr(10).join(front)}
tags:
- mlx
- diffusion
---

# DiffusionGemma for MLX
{warning}
Converted with mlx-dgemma {__version__}, recipe {provenance.recipe or "none (unquantized)"}; {plan.nbytes / 1e9:.2f} GB.

| part | weights | bits per weight | GB |
|---|---|---|---|
{rows}

    dgemma-generate --model THIS_REPO --prompt "Why is the sky blue?"

`convert.json` has the source, the options and a SHA-256 per file; `mlx_dgemma.load(..., verify=True)` checks them.
"""

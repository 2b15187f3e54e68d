"""Everything in the target folder beside the weights: config.json, tokenizer files, convert.json, the model card."""

import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_dgemma import __version__
from mlx_dgemma.diffusion.settings import SAMPLER, GenerationConfig
from mlx_dgemma.model.config import published_dialect

from .plan import Plan
from .recipes import FLOATS
from .source import Source
from .write import partial_of, write_json

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
_OURS = ("config.json", "convert.json", "model.safetensors.index.json", "state.json")
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


def write_folder(
    source: Source, plan: Plan, config: dict[str, Any], target: Path, provenance: Provenance, sums: dict[str, str]
) -> None:
    """Fills the partial folder up, so that only the renaming is left."""
    partial = partial_of(target)
    for pattern in _COPIED:
        for file in source.folder.glob(pattern):
            if file.is_file() and file.name not in _OURS:
                shutil.copyfile(file, partial / file.name)
    write_json(partial / "config.json", config)
    if not source.denoiser_trained:
        write_json(partial / "generation_config.json", _diffusion_defaults(source))
    record = {**vars(provenance), "tool": f"mlx-dgemma {__version__}", "mlx": version("mlx"), "sha256": sums}
    write_json(partial / "convert.json", record)
    (partial / "README.md").write_text(model_card(plan, provenance, source), encoding="utf-8")


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
    path = source.folder / "generation_config.json"
    if path.is_file():
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id", eos)
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

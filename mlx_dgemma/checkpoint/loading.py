"""From a folder or a hub repository to (model, tokenizer), in HF or MLX layout, quantized or not."""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path

import mlx.core as mx

from mlx_dgemma.checkpoint.eyes import apart, find_eyes
from mlx_dgemma.checkpoint.headers import TensorInfo, by_target, read_headers, sha256, shard_files
from mlx_dgemma.checkpoint.parts import fill_part
from mlx_dgemma.checkpoint.pieces import SENTENCEPIECE, SentencePieceTokenizer
from mlx_dgemma.checkpoint.tokenizer import JSON, FastTokenizer
from mlx_dgemma.checkpoint.weights import FLOATS, check_dtype, check_tensors, fill, quantize
from mlx_dgemma.diffusion.settings import GenerationConfig
from mlx_dgemma.errors import DGemmaError, first_line
from mlx_dgemma.files import read_file
from mlx_dgemma.model import cpu, memory, selfcheck
from mlx_dgemma.model.attention import Attention
from mlx_dgemma.model.config import ModelConfig
from mlx_dgemma.model.cut import cuts
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.layers import GatedMLP
from mlx_dgemma.model.moe import Router
from mlx_dgemma.model.ranks import Ranks
from mlx_dgemma.model.scores import IMAGE_MASKS
from mlx_dgemma.model.tensor import TensorModel, units_of

EMBEDDED = Path(__file__).parent / "embedded"
_DOWNLOAD = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def load(
    path_or_repo: str | Path | None = None,
    *,
    dtype: mx.Dtype | None = None,
    vision_dtype: mx.Dtype = mx.float32,
    image_mask: str = "reference",
    revision: str | None = None,
    verify: bool = False,
    ranks: Ranks | None = None,
) -> tuple[DiffusionGemma, FastTokenizer | SentencePieceTokenizer | None]:
    """Loads a DiffusionGemma checkpoint.

    Args:
        path_or_repo: a local folder, a hub repository ("owner/name"), or None for the embedded checkpoint.
        dtype: of weights and activations; by default the checkpoint's own on a GPU and float32 on the CPU.
        vision_dtype: of the vision tower, whose weights are read at the first image; bfloat16 halves their memory, and
            is coarse where activations reach tens of thousands.
        image_mask: how the tokens of an image see each other: "reference", all of them on all layers, as in
            transformers' DiffusionGemma; or "google", on sliding layers within the window, as in Google's JAX.
        revision: branch, tag or commit of a hub repository.
        verify: compare the files with the SHA-256 sums that the converter noted in convert.json.
        ranks: among which the weights are cut (`model.tensor`), all of which load; None keeps them whole.

    Returns:
        The model, and its tokenizer or None if the folder has no tokenizer files.

    Raises:
        DGemmaError: no checkpoint there, one of another kind, or a missing, misshapen or cut-off tensor; an unknown
            mask; as many ranks as the weights cannot be cut for.
    """
    if image_mask not in IMAGE_MASKS:
        raise DGemmaError(f"image_mask is {image_mask!r}; choose {' or '.join(IMAGE_MASKS)}")
    folder = resolve(path_or_repo, revision)
    config = ModelConfig.from_file(folder / "config.json")
    if verify:
        check_sums(folder)
    with memory.explained():
        model = load_model(folder, config, dtype, vision_dtype=vision_dtype, ranks=ranks)
        if config.images_both_ways:
            model.image_mask = IMAGE_MASKS[image_mask]
        return model, load_tokenizer(folder)


def resolve(path_or_repo: str | Path | None, revision: str | None = None) -> Path:
    """The checkpoint's local folder; downloads a hub repository if there is no such folder."""
    if path_or_repo is None:
        return EMBEDDED
    if not isinstance(path_or_repo, str | Path):
        raise DGemmaError(f"a checkpoint is a folder or a hub repository (owner/name), not {path_or_repo!r}")
    folder = Path(os.path.expanduser(path_or_repo))  # unlike Path's own, it takes "~nobody" as it is
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass  # a repository's name, maybe
    except OSError as error:
        raise DGemmaError(f"{folder} cannot be read: {error.strerror}; give a checkpoint folder") from None
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DGemmaError(f"no config.json in {folder}; a checkpoint folder is needed")
        return folder
    if folder.exists():
        raise DGemmaError(f"{folder} is a file; give the folder that holds config.json and the .safetensors files")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(path_or_repo)):
        raise DGemmaError(f"no folder {path_or_repo}; give a checkpoint folder or a hub repository (owner/name)")
    return _download(str(path_or_repo), revision)


def check_sums(folder: Path) -> None:
    """Compares every weight file with the SHA-256 sum in convert.json."""
    try:
        sums = dict(json.loads(read_file(folder / "convert.json").decode("utf-8"))["sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise DGemmaError(f"{folder} has no convert.json with SHA-256 sums; load it without verify") from None
    for file in shard_files(folder):
        if sha256(file) != sums.get(file.name):
            raise DGemmaError(f"{file} is not what was converted (its SHA-256 differs); convert or download it again")


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_DOWNLOAD))
    except (OSError, ValueError) as error:  # hub and network errors are OSErrors, a malformed name is a ValueError
        why = first_line(error).removeprefix("Got: ")
        raise DGemmaError(
            f"no folder {repo}, and the hub download failed ({why}); check the network and the name, log in for a "
            f"gated repository, or download it by itself: hf download {repo}"
        ) from None


def load_model(
    folder: Path, config: ModelConfig, dtype: mx.Dtype | None = None, *, fuse: bool = True,
    vision_dtype: mx.Dtype = mx.float32, ranks: Ranks | None = None,
) -> DiffusionGemma:  # fmt: skip
    """Builds the model and fills in its weights, one tensor in memory beyond those already loaded.

    With `fuse` matrices that read the same input become one, which is faster; without it parameters keep the
    checkpoint's names. The vision tower's weights stay on the disk (`checkpoint.eyes`). With `ranks` it is one rank's
    part of the model.
    """
    sources, vision = apart(by_target(read_headers(folder)))
    whole = build_model(config, set(sources))
    check_tensors(sources, whole.tensors())
    model = whole if ranks is None else build_part(whole, set(sources), ranks)
    dtype, vision_dtype = _choose_dtype(dtype, sources["model.decoder.norm.weight"]), check_dtype(vision_dtype)
    model.eyes, model.no_eyes = find_eyes(folder, config, vision, dtype, vision_dtype)
    if isinstance(model, TensorModel):
        fill_part(model, sources, dtype)
        model.compare_sizes()
    else:
        fill(model, sources, dtype)
    for module in model.modules() if fuse else ():
        if isinstance(module, Attention | GatedMLP | Router):
            module.fuse()
    model.generation_config = _generation_defaults(folder, config)
    model.eval()
    selfcheck.check_kernels()
    return model


def build_model(config: ModelConfig, names: Collection[str] = ()) -> DiffusionGemma:
    """The module tree without weights (all lazy): quantized where the config and the checkpoint's `names` say so."""
    try:
        model = DiffusionGemma(config)
    except (ValueError, OverflowError, MemoryError) as error:
        raise DGemmaError(f"config.json: no arrays have its sizes ({first_line(error)}); download it again") from None
    quantize(model, config.quantization, names)
    return model


def build_part(whole: DiffusionGemma, names: Collection[str], ranks: Ranks) -> TensorModel:
    """One rank's part of a module tree without weights, without weights.

    Raises:
        DGemmaError: as many ranks as it cannot be cut for.
    """
    part = TensorModel(cuts(whole.config, units_of(whole), ranks.size)[ranks.rank], ranks)
    quantize(part, whole.config.quantization, names)
    return part


def _choose_dtype(dtype: mx.Dtype | None, norm: TensorInfo) -> mx.Dtype:
    if dtype is None:
        dtype = mx.float32 if cpu.on_cpu() else FLOATS.get(norm.dtype, mx.bfloat16)
    return check_dtype(dtype)


def _generation_defaults(folder: Path, config: ModelConfig) -> GenerationConfig:
    """generation_config.json, else the copy that MLX repositories keep in config.json; stop ids from either config."""
    path = folder / "generation_config.json"
    if path.is_file():
        defaults = GenerationConfig.from_file(path)
    else:
        defaults = GenerationConfig.from_dict(config.generation_config or {})
    return defaults.over(GenerationConfig(eos_token_id=list(config.eos_token_id)))


def load_tokenizer(folder: Path) -> FastTokenizer | SentencePieceTokenizer | None:
    """The tokenizer of a checkpoint folder, None if it has no tokenizer files.

    Raises:
        DGemmaError: files that cannot be read.
    """
    kinds: dict[str, type[FastTokenizer] | type[SentencePieceTokenizer]]
    kinds = {JSON: FastTokenizer, SENTENCEPIECE: SentencePieceTokenizer}
    for name, kind in kinds.items():
        if (folder / name).is_file():
            try:
                return kind.from_folder(folder)
            # `tokenizers` raises a bare Exception for a file that it cannot read
            except Exception as error:
                raise DGemmaError(
                    f"the tokenizer in {folder} cannot be read ({first_line(error)}); download it again"
                ) from None
    return None

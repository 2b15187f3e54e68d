"""A small random checkpoint that sees, made with the reference implementation, and images to show it."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from mlx_dgemma import Engine, load
from tests.conftest import CANVAS, TEXT, VOCABULARY, random_reference
from tests.text.gemma import gemma_tokenizer

IMAGE, BEGIN, END = VOCABULARY - 1, VOCABULARY - 2, VOCABULARY - 3
MARKS = {"image_token_id": IMAGE, "boi_token_id": BEGIN, "eoi_token_id": END}
PATCH, BUDGET = 4, 70
EYES = {
    "model_type": "gemma4_vision",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "patch_size": PATCH,
    "position_embedding_size": 600,
    "pooling_kernel_size": 3,
    "standardize": True,
    "initializer_range": 0.2,
}
SIZES = ((10, 300), (60, 60), (50, 37))  # height and width: 45, 64 and 63 soft tokens


@torch.no_grad()
def random_seeing_reference(marks: dict[str, int] = MARKS, **text: object) -> DiffusionGemmaForBlockDiffusion:
    """The reference of `conftest`, with eyes whose every parameter matters: positions apart, standardised."""
    blind = random_reference(**text)
    config = DiffusionGemmaConfig(
        text_config={**TEXT, **text}, vision_config=EYES, canvas_length=CANVAS, eos_token_id=[1, 2],
        vision_soft_tokens_per_image=BUDGET, **marks,
    )  # fmt: skip
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation="eager").eval()
    known = {name: own for name, own in blind.state_dict().items() if "vision" not in name}
    model.load_state_dict(known, strict=False)
    torch.manual_seed(1)
    tower = model.model.encoder.vision_tower
    for name, parameter in tower.named_parameters():
        centre = 1.0 if parameter.ndim == 1 else 0.0
        parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
        if "position_embedding_table" in name:
            parameter.normal_()
    tower.std_bias.normal_()
    tower.std_scale.uniform_(0.5, 1.5)
    projection = model.model.encoder.embed_vision.embedding_projection.weight
    projection.copy_(0.1 * torch.randn_like(projection))
    return model


def picture(number: int) -> Image.Image:
    """Noise of one of SIZES."""
    size = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    """`picture` as a file's content."""
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def processed(numbers: list[int]) -> dict[str, torch.Tensor]:
    """What the reference's processor makes of pictures: pixel_values, image_position_ids, num_soft_tokens_per_image."""
    processor = Gemma4ImageProcessorPil(patch_size=PATCH, max_soft_tokens=BUDGET)
    return dict(processor([picture(n) for n in numbers], return_tensors="pt"))


def expanded(prompt: list[int], numbers: list[int]) -> list[int]:
    """A prompt as the reference takes it: for each IMAGE as many as the picture has, between BEGIN and END."""
    counts = iter(processed(numbers)["num_soft_tokens_per_image"].tolist() if numbers else [])
    return [i for token in prompt for i in ([BEGIN, *[IMAGE] * next(counts), END] if token == IMAGE else [token])]


@pytest.fixture(scope="session")
def seeing() -> DiffusionGemmaForBlockDiffusion:
    return random_seeing_reference()


@pytest.fixture(scope="session")
def seeing_folder(seeing, tmp_path_factory) -> Path:
    """It on disk, in HF layout, float32, without a tokenizer."""
    path = tmp_path_factory.mktemp("seeing")
    seeing.save_pretrained(path)
    return path


def write_seeing(path: Path) -> Path:
    """A checkpoint for the tokenizer of `tests.text.gemma`, which knows control tokens and bytes."""
    names = gemma_tokenizer().get_vocab()
    marks = {"image_token_id": names["<|image|>"], "boi_token_id": 108, "eoi_token_id": 109}
    random_seeing_reference(marks, vocab_size=512, max_position_embeddings=2048).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def seeing_engine(tmp_path_factory) -> Engine:
    """One that also reads texts, in the published checkpoint's template."""
    path = write_seeing(tmp_path_factory.mktemp("seeing-engine"))
    return Engine(load(path)[0], gemma_tokenizer(), "seeing")


def write_tokenizer(path: Path) -> Path:
    """The tokenizer of `tests.text.gemma` as files, for a command that loads a folder."""
    tokenizer = gemma_tokenizer()
    tokenizer.backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer.config.named))
    (path / "chat_template.jinja").write_text(tokenizer.chat_template or "", encoding="utf-8")
    return path


def write_pictures(path: Path, numbers: Sequence[int]) -> list[str]:
    """`png` of each number as a file; their names."""
    names = [str(path / f"{number}.png") for number in numbers]
    for name, number in zip(names, numbers, strict=True):
        Path(name).write_bytes(png(number))
    return names

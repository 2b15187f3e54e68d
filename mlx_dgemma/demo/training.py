"""Training of the embedded checkpoint, with the reference implementation (transformers, torch), saved in HF layout.

The objective is DeepMind's (google-deepmind/gemma, gemma/diffusion): one canvas of the answer at a time, each token
replaced by a uniformly random one with probability t ~ U(0, 1) per example; unweighted cross-entropy over every canvas
position; self-conditioning on half of the batches (a first pass without gradient); plus the encoder's autoregressive
loss with weight 1. Seeded: the same steps and thread count make the same checkpoint again.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma import DiffusionGemmaGenerationConfig

from mlx_dgemma.demo.vocabulary import CHARACTERS, END_OF_TURN, EOS, PAD, SPECIAL, build_tokenizer, write_tokenizer
from mlx_dgemma.model.config import published_dialect, read_config
from mlx_dgemma.tasks import TASKS, examples
from mlx_dgemma.terminal import signals

CANVAS = 64
TOKENIZER = build_tokenizer()
Batch = tuple[Tensor, Tensor, Tensor]


def model_config() -> DiffusionGemmaConfig:
    """The published architecture at 2.2 M parameters: every kind of layer is there, twice."""
    text = {
        "vocab_size": len(SPECIAL) + len(CHARACTERS),
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_experts": 8,
        "top_k_experts": 2,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "sliding_window": 128,
        "max_position_embeddings": 4096,
        "use_bidirectional_attention": "vision",
        "initializer_range": 0.05,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": 2,
    }
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "patch_size": 4,
        "position_embedding_size": 16,
    }
    top: dict[str, Any] = {"canvas_length": CANVAS, "eos_token_id": [EOS, END_OF_TURN]}
    return DiffusionGemmaConfig(text_config=text, vision_config=vision, **top)


def encode_prompt(prompt: str) -> list[int]:
    text = f"<bos><|turn>user\n{prompt}<turn|>\n<|turn>model\n"
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def encode_answer(answer: str) -> list[int]:
    """Answer, end of turn, padding up to whole canvases."""
    ids = [*TOKENIZER.encode(answer, add_special_tokens=False).ids, END_OF_TURN]
    return ids + [PAD] * (-len(ids) % CANVAS)


def left_pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each. RoPE is relative, so a shifted row is the same row."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask.bool()


def batches(seed: int, batch_size: int, stitched_share: float) -> Iterator[Batch]:
    """Prefix ids (B, T), prefix mask (B, T) and clean canvas (B, C).

    A batch has first canvases of any task, or (this share of the batches) second canvases of `count`.
    """
    anything, counts = examples(seed, held_out=False), examples(seed, held_out=False, task="count")
    chance = torch.Generator().manual_seed(seed)
    while True:
        stitched = torch.rand((), generator=chance) < stitched_share
        chosen = [next(counts if stitched else anything) for _ in range(batch_size)]
        start = CANVAS if stitched else 0
        answers = [encode_answer(e.answer) for e in chosen]
        prefixes = [encode_prompt(e.prompt) + a[:start] for e, a in zip(chosen, answers, strict=True)]
        yield *left_pad(prefixes), torch.tensor([a[start : start + CANVAS] for a in answers])


def training_loss(model: DiffusionGemmaForBlockDiffusion, batch: Batch) -> tuple[Tensor, Tensor]:
    """Denoiser loss and encoder loss (nats per token)."""
    prefix, mask, clean = batch
    vocabulary: int = model.config.get_text_config().vocab_size
    cache = DynamicCache(config=model.config.get_text_config())
    hidden = model.model.encoder(input_ids=prefix, attention_mask=mask, past_key_values=cache).last_hidden_state
    cap = model.final_logit_softcapping
    encoder_logits = cap * torch.tanh(model.lm_head(hidden[:, :-1]) / cap)
    targets = prefix[:, 1:].masked_fill(~(mask[:, 1:] & mask[:, :-1]), -100)
    encoder_loss = cross_entropy(encoder_logits.flatten(0, 1), targets.flatten())

    corrupt = torch.rand(clean.shape) < torch.rand(len(clean), 1)
    noisy = torch.where(corrupt, torch.randint(vocabulary, clean.shape), clean)
    visible = torch.nn.functional.pad(mask, (0, CANVAS), value=True)

    def denoise(previous: Tensor | None) -> Tensor:
        logits: Tensor = model(
            decoder_input_ids=noisy,
            past_key_values=cache,
            decoder_attention_mask=visible,
            self_conditioning_logits=previous,
        ).logits
        return logits

    previous = None
    if torch.rand(()) < 0.5:
        with torch.no_grad():
            previous = denoise(None)
    logits = denoise(previous)
    return cross_entropy(logits.flatten(0, 1), clean.flatten()), encoder_loss


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan 2024, "Muon"), for matrices and stacks of expert matrices."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without torch's closure, which nothing here gives
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def orthogonalise(x: Tensor, iterations: int = 5) -> Tensor:
    """Newton–Schulz iteration towards the nearest semi-orthogonal matrix, over the last two axes."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def make_optimizers(model: DiffusionGemmaForBlockDiffusion) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_parameters():
        if "vision" in name:
            p.requires_grad_(False)
        elif p.ndim >= 2 and "embed_tokens" not in name and "router" not in name:
            matrices.append(p)
        else:
            others.append(p)
    return [Muon(matrices, lr=0.02), torch.optim.Adam(others, lr=2e-3, betas=(0.9, 0.95))]


@dataclass(frozen=True)
class Plan:
    """A training run.

    Attributes:
        output: folder to save into, every `evaluate_every` steps and at the end.
        steps, batch_size: how many of them, and of how many canvases.
        evaluate_every: steps between two looks at held-out prompts.
        seed: of data, corruption and initial weights.
        start: checkpoint to go on from; None starts afresh.
        stitched: share of batches that denoise a second canvas.
        rate: factor on both learning rates.
    """

    output: Path
    steps: int = 6000
    batch_size: int = 64
    evaluate_every: int = 500
    seed: int = 0
    start: Path | None = None
    stitched: float = 0.12
    rate: float = 1.0


def train(plan: Plan) -> DiffusionGemmaForBlockDiffusion:
    """Trains, saves, and tells how it goes on stdout."""
    torch.manual_seed(plan.seed)
    if plan.start:
        model = DiffusionGemmaForBlockDiffusion.from_pretrained(plan.start, dtype=torch.float32)
    else:
        model = DiffusionGemmaForBlockDiffusion._from_config(model_config(), attn_implementation="sdpa")
    model.set_experts_implementation("grouped_mm")
    optimizers = make_optimizers(model)
    peaks = [plan.rate * group["lr"] for o in optimizers for group in o.param_groups]
    data, began = batches(plan.seed, plan.batch_size, plan.stitched), time.time()
    for step in range(1, plan.steps + 1):
        factor = min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        denoiser_loss, encoder_loss = training_loss(model, next(data))
        (denoiser_loss + encoder_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if step % 25 == 0:
            seconds = (time.time() - began) / step
            losses = f"denoiser {denoiser_loss:.4f}  encoder {encoder_loss:.4f}"
            print(f"{step:5d}  {losses}  {seconds:.2f} s/step", flush=True)
        if step % plan.evaluate_every == 0 or step == plan.steps:
            print(f"{step:5d}  exact match: {quick_scores(model, 16)}", flush=True)
            with signals.uninterrupted():
                save(model, plan.output)
    return model


@torch.no_grad()
def quick_scores(model: DiffusionGemmaForBlockDiffusion, n: int) -> str:
    """Exact match of a few held-out prompts a task through the reference's own generate, 16 denoising steps."""
    state = torch.get_rng_state()
    scores = []
    for name in TASKS:
        stream = examples(1, held_out=True, task=name)
        chosen = [next(stream) for _ in range(n)]
        ids, mask = left_pad([encode_prompt(e.prompt) for e in chosen])
        new = model.generate(
            ids, attention_mask=mask, generation_config=generation_config(), max_denoising_steps=16, max_new_tokens=128
        ).sequences[:, ids.shape[1] :]
        texts = [TOKENIZER.decode(row.tolist(), skip_special_tokens=True) for row in new]
        right = sum(e.task.check(e.prompt, text) for e, text in zip(chosen, texts, strict=True))
        scores.append(f"{name} {right / n:.2f}")
    torch.set_rng_state(state)
    return "  ".join(scores)


def generation_config() -> DiffusionGemmaGenerationConfig:
    defaults = DiffusionGemmaGenerationConfig._get_default_generation_params()
    return DiffusionGemmaGenerationConfig(**defaults, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD)


def save(model: DiffusionGemmaForBlockDiffusion, folder: Path) -> None:
    """HF layout in bfloat16, with the tokenizer and the generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    half = DiffusionGemmaForBlockDiffusion._from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(state)
    half.generation_config = generation_config()
    half.save_pretrained(folder)
    config = read_config(folder / "config.json")
    config["text_config"] = published_dialect(config["text_config"])  # which every reader knows
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder)

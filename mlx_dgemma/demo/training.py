"""Training of the embedded checkpoint, with the reference implementation (transformers, torch), saved in HF layout.

The objective is DeepMind's (google-deepmind/gemma, gemma/diffusion): one canvas of the answer at a time, each token
replaced by a uniformly random one with probability t ~ U(0, 1) per example; unweighted cross-entropy over every canvas
position; self-conditioning on half of the batches (a first pass without gradient); plus the encoder's autoregressive
loss over prompt (a tenth) and answer. Seeded: the same steps and thread count make the same checkpoint again.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.models.diffusion_gemma import DiffusionGemmaGenerationConfig

from mlx_dgemma.demo.batches import (
    BUDGET,
    CANVAS,
    PATCH,
    POOLED,
    TOKENIZER,
    Batch,
    batches,
    encode_prompt,
    left_pad,
)
from mlx_dgemma.demo.optimizer import make_optimizers
from mlx_dgemma.demo.vocabulary import (
    BEGIN_IMAGE,
    BOS,
    END_IMAGE,
    END_OF_TURN,
    EOS,
    IMAGE,
    PAD,
    RESPONSE,
    write_tokenizer,
)
from mlx_dgemma.demo.workers import average, followers
from mlx_dgemma.model.config import published_dialect, read_config
from mlx_dgemma.tasks import TASKS, examples
from mlx_dgemma.terminal import signals

Masks = dict[str, Tensor]
Denoise = Callable[[Tensor, Tensor | None], Tensor]
TABLES = ("embed_tokens.weight", "lm_head.weight")  # one table, tied


def model_config() -> DiffusionGemmaConfig:
    """The published architecture at 2.2 M parameters: every kind of layer is there, twice."""
    text = {
        "vocab_size": TOKENIZER.get_vocab_size(),
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
        "bos_token_id": BOS,
    }
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "global_head_dim": 16,
        "patch_size": PATCH,
        "pooling_kernel_size": POOLED,
        "position_embedding_size": BUDGET * POOLED,  # a picture may be one token high
        "default_output_length": BUDGET,
        "standardize": True,
    }
    top: dict[str, Any] = {"canvas_length": CANVAS, "eos_token_id": [EOS, END_OF_TURN, RESPONSE]}
    top |= {"image_token_id": IMAGE, "boi_token_id": BEGIN_IMAGE, "eoi_token_id": END_IMAGE}
    top |= {"vision_soft_tokens_per_image": BUDGET}
    return DiffusionGemmaConfig(text_config=text, vision_config=vision, **top)


def load_start(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    """A checkpoint to go on from: embeddings are carried over by token, eyes of another size begin afresh."""
    old: DiffusionGemmaForBlockDiffusion = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    theirs: dict[str, int] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ours = TOKENIZER.get_vocab()
    model = new_model()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    rest = {n: t for n, t in old.state_dict().items() if not n.endswith(TABLES) and t.shape == shapes.get(n)}
    model.load_state_dict(rest, strict=False)
    table, old_table = model.lm_head.weight.data, old.lm_head.weight.data
    for token in ours.keys() & theirs.keys():
        table[ours[token]] = old_table[theirs[token]]
    return model


def new_model() -> DiffusionGemmaForBlockDiffusion:
    model: DiffusionGemmaForBlockDiffusion = DiffusionGemmaForBlockDiffusion._from_config(
        model_config(), attn_implementation="sdpa"
    )
    return model


def masks(start: Tensor, ids: Tensor, window: int) -> tuple[Masks, Masks]:
    """What the queries of encoder (B, 1, T, T) and canvas (B, 1, C, T + C) see, by kind of layer; ids are (B, T).

    A picture's tokens, of which a row has one picture's, see each other.

    The canvas sees the prefix up to where it begins, in sliding layers the last `window - 1` tokens of it, and itself.
    """
    length, shown = ids.shape[1], (ids == IMAGE)[:, None]
    query, key, begin = torch.arange(length)[:, None], torch.arange(length), start[:, None, None, None]
    both = shown[..., None] & shown[..., None, :]  # (B, 1, T, T)
    causal, before = key <= query, key < begin
    seen = {
        "full_attention": (causal, before),
        "sliding_attention": (causal & (query - key < window), before & (begin - key < window)),
    }
    reader = {kind: own | both for kind, (own, _) in seen.items()}
    viewer = {kind: prefix.expand(-1, -1, CANVAS, -1) for kind, (_, prefix) in seen.items()}
    return reader, {kind: pad(prefix, (0, CANVAS), value=True) for kind, prefix in viewer.items()}


def encode_rows(model: DiffusionGemmaForBlockDiffusion, batch: Batch) -> tuple[Tensor, Denoise]:
    """Causal logits of every row (B, T, V), and the denoiser of canvases that begin at `batch.start`.

    The denoiser takes a canvas (B, C) and the previous logits (B, C, V) or None, and returns logits (B, C, V).
    """
    reader, viewer = masks(batch.start, batch.ids, model.config.get_text_config().sliding_window)
    cache = DynamicCache()  # every layer whole: each row's canvas begins elsewhere
    shown = batch.pictures
    eyes = {} if shown is None else {"pixel_values": shown.patches, "image_position_ids": shown.places}
    hidden = model.model.encoder(input_ids=batch.ids, attention_mask=reader, cache=cache, **eyes).last_hidden_state
    cap = model.final_logit_softcapping
    positions = batch.start[:, None] + torch.arange(CANVAS)

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        logits: Tensor = model(
            decoder_input_ids=canvas,
            cache=cache,
            decoder_attention_mask=viewer,
            decoder_position_ids=positions,
            self_conditioning_logits=previous,
        ).logits
        return logits

    return cap * torch.tanh(model.lm_head(hidden) / cap), denoise


def training_loss(model: DiffusionGemmaForBlockDiffusion, batch: Batch) -> tuple[Tensor, Tensor]:
    """Denoiser loss and encoder loss (nats per token)."""
    causal, denoise = encode_rows(model, batch)
    losses = cross_entropy(causal[:, :-1].mT, batch.ids[:, 1:], reduction="none")
    encoder_loss = (losses * batch.read[:, 1:]).sum() / batch.read[:, 1:].sum()

    corrupt = torch.rand(batch.clean.shape) < torch.rand(len(batch.clean), 1)
    noisy = torch.where(corrupt, torch.randint(causal.shape[-1], batch.clean.shape), batch.clean)
    previous = None
    if torch.rand(()) < 0.5:
        with torch.no_grad():
            previous = denoise(noisy, None)
    logits = denoise(noisy, previous)
    return cross_entropy(logits.flatten(0, 1), batch.clean.flatten()), encoder_loss


@dataclass(frozen=True)
class Plan:
    """A training run.

    Attributes:
        output: folder to save into, every `save_every` minutes and at the end.
        steps, batch_size: how many of them, and of how many canvases.
        minutes: end after so long instead of after `steps`; another run is then another checkpoint.
        save_every: minutes between two saves.
        seed: of data, corruption and initial weights.
        start: checkpoint to go on from; None starts afresh.
        rate: factor on both learning rates.
        focus: factors on the shares of tasks, by name.
        copies: share of batches that copy pieces of random text and nothing else.
        workers: processes, each with batches of its own; all step with the mean of their gradients.
    """

    output: Path
    steps: int = 6000
    minutes: float | None = None
    batch_size: int = 64
    save_every: float = 15
    seed: int = 0
    start: Path | None = None
    rate: float = 1.0
    focus: tuple[tuple[str, float], ...] = ()
    copies: float = 0.0
    workers: int = 1


def train(plan: Plan) -> DiffusionGemmaForBlockDiffusion:
    """Trains, saves, and tells how it goes on stdout."""
    with followers(plan.workers, partial(_train, plan)):
        return _train(plan)


def _train(plan: Plan, rank: int = 0) -> DiffusionGemmaForBlockDiffusion:
    torch.manual_seed(plan.seed)
    model = load_start(plan.start) if plan.start else new_model()
    model.set_experts_implementation("grouped_mm")
    optimizers = make_optimizers(model)
    peaks = [plan.rate * group["lr"] for o in optimizers for group in o.param_groups]
    seed = plan.seed + 1000 * rank
    torch.manual_seed(seed)
    data, began, saved = batches(seed, plan.batch_size, dict(plan.focus), plan.copies), time.time(), time.time()
    step, done = 0, 0.0
    while done < 1:
        step += 1
        done = (time.time() - began) / (60 * plan.minutes) if plan.minutes else step / plan.steps
        denoiser_loss, encoder_loss = training_loss(model, next(data))
        (denoiser_loss + encoder_loss).backward()
        done = average(model, done)
        factor = min(step / 100, 0.5 + 0.5 * math.cos(math.pi * min(done, 1)))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if rank > 0:
            continue  # the first process tells and saves
        if step % 25 == 0:
            seconds = (time.time() - began) / step
            losses = f"denoiser {denoiser_loss:.4f}  encoder {encoder_loss:.4f}"
            print(f"{step:5d}  {losses}  {seconds:.2f} s/step", flush=True)
        if time.time() - saved > 60 * plan.save_every or done >= 1:
            with signals.uninterrupted():
                save(model, plan.output)
            saved = time.time()
    if rank == 0:
        print(f"exact match: {quick_scores(model, 16)}", flush=True)
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
    return DiffusionGemmaGenerationConfig(**defaults, eos_token_id=[EOS, END_OF_TURN, RESPONSE], pad_token_id=PAD)


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

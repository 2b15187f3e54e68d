"""One canvas through mlx-vlm, the way its own generation loop does it, for the side-by-side benchmark."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx


class MlxVlm:
    """mlx-vlm on a checkpoint folder, with a prefix that is read once and reused, as denoising never changes it."""

    def __init__(self, folder: Path, prompt: mx.array, chunk: int):
        from mlx_vlm.utils import load_model

        self.model = load_model(folder, strict=False)  # it would ask for vision weights
        self.model.set_dtype(mx.float32)
        self.prompt = prompt
        self.cache = self.model.make_cache()
        for start in range(0, prompt.shape[1], chunk):
            self.model.diffusion_prefill_cache(prompt[:, start : start + chunk], cache=self.cache)
            mx.eval([c.state for c in self.cache])
        self.model.diffusion_prefill_cache = lambda *args, **options: self.cache

    def canvas_seconds(self, steps: int) -> float:
        """Seconds for one canvas of `steps` denoising steps by `stream_diffusion_generate`, entropy-bound sampler."""
        from mlx_vlm.generate.diffusion import stream_diffusion_generate

        tokenizer = SimpleNamespace(stopping_criteria=lambda token: False)
        processor = SimpleNamespace(tokenizer=tokenizer, detokenizer=_Silent())
        events = stream_diffusion_generate(
            self.model, processor, tokenizer, self.prompt, None, None, max_tokens=256, temperature=1.0,
            skip_special_token_ids=[], max_denoising_steps=steps, diffusion_full_canvas=True,
            diffusion_sampler="entropy-bound",
        )  # fmt: skip
        last = None
        for event in events:
            last = event
        return last.diffusion_work_tokens / last.diffusion_work_tps

    def step(self, canvas: mx.array, soft: mx.array, earlier: mx.array) -> list[mx.array]:
        """The graph of one step in the middle of a canvas: the statements of its loop, without its host reads."""
        from mlx_vlm.generate import diffusion as loop

        masks = self.model.diffusion_decoder_masks(canvas, self.cache)
        logits = self.model.diffusion_decoder_logits(canvas, self.cache, soft, masks) / 0.7
        argmax = mx.argmax(logits, axis=-1).astype(mx.int32)
        proposal = loop._diffusion_sample_canvas(logits, mx.int32, 1.0)
        entropy = loop._diffusion_token_entropy(logits)
        conditioning = self.model.diffusion_self_conditioning(logits, self.model.diffusion_prepare_self_conditioning())
        accepted = loop._diffusion_entropy_transfer_mask(entropy, 0.1)
        kept = mx.where(accepted, proposal, canvas)
        noise = loop._diffusion_initialize_canvas(*canvas.shape, self.model.config.text_config.vocab_size, mx.int32)
        return [mx.where(accepted, kept, noise), conditioning, argmax, mx.all(argmax == earlier)]

    def regions(self) -> tuple[tuple[Any, str], ...]:
        """Its functions under `mx.compile`."""
        from mlx_vlm.models.diffusion_gemma import language

        return ((language, "geglu"), (self.model, "_softcap"))


class _Silent:
    """A detokenizer for token ids without text."""

    last_segment = ""

    def reset(self) -> None: ...
    def add_token(self, token: int, skip_special_token_ids: Any = None) -> None: ...
    def finalize(self) -> None: ...

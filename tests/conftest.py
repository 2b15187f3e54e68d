"""Small random checkpoints, made with the reference implementation and loaded with ours."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from mlx_dgemma import load

settings.register_profile("no deadline", deadline=None)  # a machine that does something else is no failure
settings.load_profile("no deadline")
torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
WINDOW, CANVAS, VOCABULARY = 8, 16, 120
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "top_k_experts": 3,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": WINDOW,
    "max_position_embeddings": 512,
    "use_bidirectional_attention": "vision",
    "eos_token_id": 1,
}
VISION = {
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
CENTRES = {"q_norm": 0.5, "k_norm": 0.5, "post_attention_layernorm": 0.45, "post_feedforward_layernorm.": 0.45}


@torch.no_grad()
def random_reference(seed: int = 0, **text: object) -> DiffusionGemmaForBlockDiffusion:
    """A reference model whose every parameter matters: norms off one, scalars apart, logits far from uniform.

    The inner weights are kept small enough that a step does not amplify a rounding error much (a factor near 1, where
    random weights of ordinary size give 200): whole generations can then be compared token for token. Block outputs are
    smaller than the residual stream, so that canvases settle and adaptive stopping has something to do.
    """
    torch.manual_seed(seed)
    config = DiffusionGemmaConfig(
        text_config=TEXT | text, vision_config=VISION, canvas_length=CANVAS, eos_token_id=[1, 2]
    )
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation="eager").eval()
    spreads = {"embed_tokens": 0.4, "q_norm": 0.2, "k_norm": 0.2, "norm": 0.3, "scale": 0.2, "router": 0.1}
    for name, parameter in model.model.decoder.named_parameters():
        spread = next((s for key, s in spreads.items() if key in name), 0.05)
        centre = next((c for key, c in CENTRES.items() if key in name), 1.0) if parameter.ndim == 1 else 0.0
        parameter.copy_(centre + spread * torch.randn_like(parameter))
    for layers in (model.model.decoder.layers, model.model.encoder.language_model.layers):
        for layer in layers:
            layer.layer_scalar.uniform_(0.5, 1.2)
    return model


@pytest.fixture(scope="session")
def reference() -> DiffusionGemmaForBlockDiffusion:
    return random_reference()


@pytest.fixture(scope="session")
def folder(reference, tmp_path_factory):
    """The random reference model on disk, in HF layout, float32, without a tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model(folder):
    return load(folder)[0]


class ReplayedNoise:
    """The same numbers for both sides: a NumPy generator behind the two methods of `noise.Noise`."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY, convert=None):
        self.random = np.random.default_rng(seed)
        self.vocabulary = vocabulary
        self.convert = convert
        self.draws = []

    def tokens(self, shape):
        self.draws.append("tokens")
        return self._converted(self.random.integers(0, self.vocabulary, tuple(shape)))

    def uniform(self, shape):
        self.draws.append("uniform")
        return self._converted(self.random.random(tuple(shape), dtype=np.float32))

    def _converted(self, array):
        if self.convert is not None:
            return self.convert(array)
        return mx.array(array.astype(np.int32) if array.dtype.kind == "i" else array)

"""The entropy-bound sampler as pure functions over arrays; it knows nothing of models.

The parity target is transformers (EntropyBoundSampler); the acceptance rule is that of arXiv 2505.24857. Shapes: B
batch, C canvas, V vocabulary. Logits here are tempered: already divided by the step's temperature.
"""

import mlx.core as mx


def log_probabilities(logits: mx.array) -> mx.array:
    """Log-softmax over the vocabulary: (B, C, V) -> (B, C, V), float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def token_entropy(log_p: mx.array) -> mx.array:
    """Entropy in nats per position: (B, C, V) -> (B, C)."""
    p = mx.exp(log_p)
    return -mx.where(p > 0, p * log_p, 0).sum(axis=-1)


def draw(log_p: mx.array, u: mx.array) -> mx.array:
    """Categorical draw by inverse CDF: the smallest id whose cumulative probability, in id order, reaches u.

    log_p (B, C, V) and u (B, C) in [0, 1) -> ids (B, C).
    """
    cumulative = mx.cumsum(mx.exp(log_p), axis=-1)
    reach = u[..., None] * cumulative[..., -1:]  # rounding may leave the last sum just below 1
    return (cumulative < reach).sum(axis=-1).astype(mx.int32)


def accept(entropy: mx.array, entropy_bound: float) -> mx.array:
    """Which positions to accept: lowest entropy first, while cumsum(H) − H ≤ bound. (B, C) -> bool (B, C).

    The sum without the largest term bounds the mutual information between the accepted positions, so the position with
    the lowest entropy is always accepted.
    """
    order = mx.argsort(entropy, axis=-1)
    ascending = mx.take_along_axis(entropy, order, axis=-1)
    within = mx.cumsum(ascending, axis=-1) - ascending <= entropy_bound
    return mx.take_along_axis(within, mx.argsort(order, axis=-1), axis=-1)


def renoise(proposal: mx.array, accepted: mx.array, noise: mx.array) -> mx.array:
    """The next canvas: the proposal where accepted, fresh uniform tokens elsewhere. (B, C) each."""
    return mx.where(accepted, proposal, noise)

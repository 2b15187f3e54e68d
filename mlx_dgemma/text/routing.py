"""Which of its two modes the model writes with, where the request leaves it open: decisions from what was measured.

A denoised canvas is worth its steps where few of them settle it. Where a machine writes faster one token at a time, or
where a canvas did not settle, the causal mode goes on with the same weights (notes on acceleration, E7).
"""

PROBE = 8  # tokens that are written causally to measure how fast that is; the text keeps them
FASTER = 1.3  # times the tokens per second of the first canvas, from which the causal mode goes on
UNSURE = 0.2  # nats: the mean entropy above which a canvas is not believed


def goes_causal(denoised: float, causal: float) -> bool:
    """Whether the causal mode goes on; both rates are tokens per second, measured on this machine in this run."""
    return causal > FASTER * denoised


def is_rewritten(*, is_settled: bool, mean_entropy: float) -> bool:
    """Whether a canvas is written again causally.

    Args:
        is_settled: whether the sampler's rule stopped it, and not the number of steps.
        mean_entropy: of its last step, nats.
    """
    return not is_settled or mean_entropy > UNSURE

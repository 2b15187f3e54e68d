"""The network: arrays in, arrays out. It knows nothing of sampling, checkpoints, text or terminals.

`diffusion_gemma` has the two modes, `encode` and `denoise`; the other modules are its parts.
"""

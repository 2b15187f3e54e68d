"""Block diffusion over token ids: the loop that denoises a canvas and stitches it onto the prefix, and its rules.

`canvas` has the loops, `sampling` and `stopping` the published rules as pure functions of arrays, `vocabulary` the walk
over the embedding table that a denoising step asks its questions. Nothing here knows of text.
"""

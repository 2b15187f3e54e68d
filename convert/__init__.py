"""The converter: any checkpoint of the family into an MLX folder, one tensor in memory at a time.

source (what is there) → recipes (which format each module gets) → plan (every tensor, before any is read) → write, in a
place that `target` keeps.
`python -m convert` runs it from a checkout; an installed package has it as `mlx_dgemma.converter` and `dgemma-convert`.
"""

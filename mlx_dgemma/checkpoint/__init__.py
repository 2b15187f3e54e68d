"""Checkpoint folders: what their files hold (`headers`), and a model and a tokenizer made from them (`loading`).

`embedded/` is the checkpoint that comes with the package.
"""

"""Experiments: the same questions at every point of a grid of sampler settings, and what each point gains and costs."""

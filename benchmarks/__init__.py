"""Measurements behind the figures of README and docs; each script prints what they say."""

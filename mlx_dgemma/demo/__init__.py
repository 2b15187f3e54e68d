"""The embedded checkpoint: how it was trained and how it is evaluated."""

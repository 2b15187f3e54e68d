"""The embedded checkpoint: its tasks, its tokenizer, the script that trained it and the table that judges it."""

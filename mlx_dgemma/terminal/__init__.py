"""What the command lines share: parser and exit codes (`cli`), the progress line, the live canvas."""

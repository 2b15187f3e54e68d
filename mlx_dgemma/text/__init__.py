"""From a prompt to a text: prompts and templates to token ids, canvases to text, several samples, labels read off a canvas."""

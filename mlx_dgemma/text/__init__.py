"""From a prompt to a text: prompts and templates to ids, canvases to text, several samples, labels read in a canvas."""

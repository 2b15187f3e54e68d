"""Speed: what a checkpoint does on this machine (`measure`), and what no machine can do better (`roofline`)."""

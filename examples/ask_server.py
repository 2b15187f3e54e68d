"""Asks a running `dgemma-server`, and shows each denoising step before the text that it becomes.

python examples/ask_server.py http://127.0.0.1:8080 "spell 1842"
"""

import json
import sys
import urllib.request

url, prompt = sys.argv[1:]
body = {
    "messages": [{"role": "user", "content": prompt}],
    "stream": True,
    "diffusion": {"drafts": "text"},  # other clients leave it out, and get an ordinary stream
}
request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
with urllib.request.urlopen(request) as answer:
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        about = chunk.get("diffusion", {})
        if "step" in about:
            print(f"step {about['step']}: {about['text']}")
        if text := chunk["choices"][0]["delta"].get("content"):
            print(text)

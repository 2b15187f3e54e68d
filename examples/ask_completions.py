"""Asks a running `dgemma-server` for what stands before the end of a text, which only a canvas can know beforehand.

python examples/ask_completions.py http://127.0.0.1:8080 "roman 1994" XCIV 3
"""

import json
import sys
import urllib.request

url, prompt, suffix, tokens = sys.argv[1:]
body = {"prompt": prompt, "suffix": suffix, "max_tokens": int(tokens), "seed": 1}
request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
with urllib.request.urlopen(request) as answer:
    (choice,) = json.load(answer)["choices"]
print(f"{choice['text']} | {suffix}")

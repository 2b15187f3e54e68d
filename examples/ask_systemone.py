"""Asks a running `dgemma-server` questions about a text: a probability for each answer, read off one canvas.

python examples/ask_systemone.py http://127.0.0.1:8080 "You have won! Send us your number." spam "a letter" "a bill"
"""

import json
import sys
import urllib.request

url, state, *options = sys.argv[1:]
questions = {
    "kind": {"type": "choice", "instructions": "What is this?", "criteria": dict.fromkeys(options)},
    "urgent": {"type": "noul", "instructions": "Does it have to be read today?"},
}
body = json.dumps({"state": state, "questions": questions}).encode()
with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/systemone", body)) as answer:
    answers = json.load(answer)["answers"]
for option, p in answers["kind"]["probabilities"].items():
    print(f"{option}: {p:.1%}")
print(f"urgent: {answers['urgent']['noul']:.1%}")

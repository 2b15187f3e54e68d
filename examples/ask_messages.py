"""Asks a running `dgemma-server` as Claude Code does, with Anthropic's own client (`pip install anthropic`).

python examples/ask_messages.py http://127.0.0.1:8080 "spell 1842" "eight hundred"
"""

import sys

import anthropic

url, prompt, stop = sys.argv[1:]
client = anthropic.Anthropic(base_url=url, api_key="none")
(model, *_) = client.models.list()
ask = {"model": model.id, "messages": [{"role": "user", "content": prompt}]}
print(client.messages.count_tokens(**ask).input_tokens, "tokens")
with client.messages.stream(max_tokens=1000, stop_sequences=[stop], **ask) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    message = stream.get_final_message()
print(f"\n{message.stop_reason} {message.stop_sequence}")

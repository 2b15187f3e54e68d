"""Asks a running `dgemma-server` as Codex does, with OpenAI's own client (`pip install openai`).

python examples/ask_responses.py http://127.0.0.1:8080 "spell 1842"
"""

import sys

import openai

url, prompt = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
(model, *_) = client.models.list()
with client.responses.stream(model=model.id, input=prompt) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    usage = stream.get_final_response().usage
print(f"\n{usage.input_tokens} tokens read, {usage.output_tokens} written")

"""Asks a server for all that an app may want of OpenAI's API (and some of Anthropic's), and says what it lacks.

python examples/conformance.py --base-url http://127.0.0.1:8080/v1 [--model NAME] [--key KEY]

A line for each check; exit code 0 if nothing is lacking, 1 otherwise. It tests manners, not intelligence.
"""

import argparse
import base64
import json
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

ASK = [{"role": "user", "content": "Count from one to twenty in words."}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TOOL = {"name": "look", "description": "look outside", "parameters": {"type": "object", "properties": {}}}
Body = dict[str, Any]


class Lack(Exception):
    """What a server does not do."""


class Server:
    """An API under a base URL, `…/v1`."""

    def __init__(self, url: str, key: str, model: str | None, seconds: float):
        self.url, self.key, self.seconds = url.rstrip("/"), key, seconds
        self.model = model or ""

    def ask(self, path: str, body: Body | bytes | None = None) -> tuple[int, bytes]:
        """Status and content of an answer."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}", "x-api-key": self.key}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=self.seconds
            ) as answer:  # fmt: skip
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, body: Body | None = None) -> Body:
        """A good answer."""
        status, content = self.ask(path, body)
        if status != 200:
            raise Lack(f"{path}: status {status}, {content[:200].decode(errors='replace')}")
        return dict(json.loads(content))

    def chat(self, **more: Any) -> Body:
        return self.json("/chat/completions", {"model": self.model, "messages": ASK, "max_tokens": 64, **more})

    def choice(self, **more: Any) -> Body:
        return dict(self.chat(**more)["choices"][0])


def need(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise Lack(otherwise)


def chat(server: Server) -> None:
    answer = server.chat()
    choice, usage = answer["choices"][0], answer["usage"]
    need(isinstance(choice["message"]["content"], str), "no content")
    need(choice["finish_reason"] in ("stop", "length"), f"finish_reason {choice['finish_reason']!r}")
    whole = usage["prompt_tokens"] + usage["completion_tokens"]
    need(usage["total_tokens"] == whole and usage["prompt_tokens"] > 0, f"usage {usage}")


def streaming(server: Server) -> None:
    body = {"model": server.model, "messages": ASK, "max_tokens": 64, "stream": True, "seed": 7}
    status, content = server.ask("/chat/completions", {**body, "stream_options": {"include_usage": True}})
    lines = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
    need(status == 200 and lines and lines[-1] == "[DONE]", "no stream that ends in [DONE]")
    chunks = [json.loads(line) for line in lines[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    need("".join(texts) == server.choice(seed=7)["message"]["content"], "another text than without a stream")
    need(chunks[-1].get("usage"), "no usage in the last chunk")


def seeds(server: Server) -> None:
    first, again = (server.choice(seed=11, temperature=1)["message"]["content"] for _ in range(2))
    need(first == again, "the same seed gives other texts")


def lengths(server: Server) -> None:
    answer = server.chat(max_tokens=2)
    need(answer["choices"][0]["finish_reason"] == "length", "an answer that was cut does not say so")
    need(answer["usage"]["completion_tokens"] <= 2, "more tokens than were asked for")


def stops(server: Server) -> None:
    text = server.choice(seed=3)["message"]["content"]
    need(len(text) > 1, "an answer of less than two characters, which nothing can be cut from")
    stop = text[len(text) // 2]
    cut = server.choice(seed=3, stop=[stop])
    need(cut["message"]["content"] == text[: text.index(stop)], f"stop {stop!r} does not end the answer before it")
    need(cut["finish_reason"] == "stop", "an answer that was stopped does not say so")


def several(server: Server) -> None:
    need(len(server.chat(n=2)["choices"]) == 2, "n=2 does not give two answers")


def tools(server: Server) -> None:
    made = server.choice(
        tools=[{"type": "function", "function": TOOL}], tool_choice={"type": "function", "function": {"name": "look"}}
    )  # fmt: skip
    calls = made["message"].get("tool_calls") or []
    need(calls and calls[0]["function"]["name"] == "look", "a tool that has to be called is not")
    need(isinstance(json.loads(calls[0]["function"]["arguments"]), dict), "its arguments are no object")
    told = [*ASK, {"role": "assistant", "tool_calls": calls[:1]}]
    told.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": "rain"})
    server.chat(messages=told, tools=[{"type": "function", "function": TOOL}])


def schemas(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    content = json.loads(server.choice(response_format=form)["message"]["content"])
    need(isinstance(content, dict) and isinstance(content.get("n"), int), f"{content!r} does not fit the schema")


def logprobs(server: Server) -> None:
    known = (server.choice(logprobs=True, top_logprobs=2).get("logprobs") or {}).get("content") or []
    need(known and known[0]["logprob"] <= 0 and len(known[0]["top_logprobs"]) == 2, "no logprobs")


def thinking(server: Server) -> None:
    server.chat(reasoning_effort="low")
    server.chat(chat_template_kwargs={"enable_thinking": True})


def images(server: Server) -> None:
    row = b"\0" + b"\xff\0\0" * 64
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(row * 64)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
    seen = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]
    server.chat(messages=[{"role": "user", "content": [*seen, {"type": "text", "text": "What is it?"}]}])


def errors(server: Server) -> None:
    for what, body in (("no JSON", b"{"), ("no messages", {"model": server.model}), ("messages of 7", {"messages": 7})):
        status, content = server.ask("/chat/completions", body)
        need(400 <= status < 500, f"{what}: status {status}")
        error = json.loads(content).get("error")
        need(isinstance(error, dict) and error.get("message"), f"{what}: no error of OpenAI's form")


def completions(server: Server) -> None:
    answer = server.json("/completions", {"model": server.model, "prompt": "once upon", "max_tokens": 16})
    need(isinstance(answer["choices"][0]["text"], str), "no text")


def responses(server: Server) -> None:
    answer = server.json("/responses", {"model": server.model, "input": "hello", "max_output_tokens": 64})
    need(any(item["type"] == "message" for item in answer["output"]), "no message in the output")


def messages(server: Server) -> None:
    body = {"model": server.model, "max_tokens": 64, "messages": ASK}
    answer = server.json("/messages", body)
    need(answer["type"] == "message" and answer["usage"]["output_tokens"] >= 0, "no message")
    need(server.json("/messages/count_tokens", body)["input_tokens"] > 0, "no count")


def diffusion(server: Server) -> None:
    """The settings of this kind of model, and what it tells of its steps."""
    own = {"max_denoising_steps": 4, "fast": True}
    need("diffusion" in server.chat(diffusion=own), "nothing is told of the canvases")


CHECKS: dict[str, Callable[[Server], None]] = {
    "chat": chat, "streaming, with usage": streaming, "seeds": seeds, "lengths": lengths, "stop texts": stops,
    "several answers": several, "tools": tools, "JSON of a schema": schemas, "log-probabilities": logprobs,
    "thinking": thinking, "images": images, "errors": errors, "completions": completions, "responses": responses,
    "Anthropic's messages": messages, "diffusion settings": diffusion,
}  # fmt: skip


def lacking(server: Server, check: Callable[[Server], None]) -> str | None:
    """What a check finds missing; None if nothing is."""
    try:
        check(server)
    except Lack as lack:
        return str(lack)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"an answer of another form ({type(error).__name__}: {error})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Say what a server lacks of the APIs that apps speak.")
    parser.add_argument("--base-url", required=True, metavar="URL", help="with /v1 at its end")
    parser.add_argument("--model", metavar="NAME", help="(default: the first that the server names)")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="for an answer (default: 600)")
    args = parser.parse_args()
    server = Server(args.base_url, args.key, args.model, args.timeout)
    try:
        server.model = server.model or server.json("/models")["data"][0]["id"]
    except (Lack, OSError, ValueError, LookupError, TypeError) as error:
        print(f"error: {args.base_url}: it names no model ({error})", file=sys.stderr)
        return 1
    found = {}
    for name, check in CHECKS.items():
        found[name] = lacking(server, check)
        print(f"ok     {name}" if found[name] is None else f"lacks  {name}: {found[name]}", flush=True)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())

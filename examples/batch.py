"""Many prompts, one model: answers in order, and as JSON lines for other programs: batch.py < PROMPTS > ANSWERS"""

import json
import sys

from mlx_dgemma import Engine, GenerationConfig, Request

engine, settings = Engine.load(), GenerationConfig(max_new_tokens=128)
prompts = [line.strip() for line in sys.stdin if line.strip()]
for number, prompt in enumerate(prompts):
    result = engine.generate(Request(prompt, settings=settings, seed=number))
    answer = {"prompt": prompt, "answer": result.text, "steps": result.stats.steps, "reason": result.finish_reason}
    print(json.dumps(answer, ensure_ascii=False), flush=True)

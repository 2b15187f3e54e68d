"""How often `choose` finds the right answer among wrong ones: the figures of docs/steering.md.

Of the embedded checkpoint: held-out questions, the right answer (which it can write) among up to four that differ in
one character: replaced, swapped with its neighbour, left out at the end, added at the end. By draws of the noise.

python -m benchmarks.choose
"""

import argparse
import random
import time

from mlx_dgemma import Engine, Request
from mlx_dgemma.tasks.embedded import draw_examples

TASKS = ("upper", "reverse", "sort", "spell", "roman")


def distractors(answer: str, choice: random.Random) -> list[str]:
    """Wrong answers that look like the right one."""
    letters = sorted({*answer, "x"})
    i, j = choice.randrange(len(answer)), choice.randrange(max(1, len(answer) - 1))
    replaced = answer[:i] + choice.choice([c for c in letters if c != answer[i]]) + answer[i + 1 :]
    swapped = answer[:j] + answer[j + 1 : j + 2] + answer[j] + answer[j + 2 :]
    return sorted({replaced, swapped, answer[:-1], answer + choice.choice(letters)} - {answer, ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="questions per task (default: 100)")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4], help="of the noise (default: 1 4)")
    args = parser.parse_args()
    engine = Engine.load()
    heads = [f"{draws} draw{'s' * (draws > 1)}" for draws in args.draws]
    print(f"| task | questions | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|", sep="\n")
    seconds = [0.0] * len(heads)
    for task in TASKS:
        choice, asked, right = random.Random(0), 0, [0] * len(heads)
        for example in draw_examples(task, 1000, args.n):
            request = Request(example.prompt)
            answer = engine.generate(request).text
            if not example.task.check(example.prompt, answer):
                continue
            labels, asked = [answer, *distractors(answer, choice)], asked + 1
            choice.shuffle(labels)
            for i, draws in enumerate(args.draws):
                began = time.perf_counter()
                p = engine.choose(request, "{?}", labels, draws=draws)
                seconds[i] += time.perf_counter() - began
                right[i] += max(p, key=p.get) == answer
        print(f"| {task} | {asked} | {' | '.join(f'{r / asked:.1%}' for r in right)} |", flush=True)
    print(f"| seconds in all | | {' | '.join(f'{s:.0f}' for s in seconds)} |")


if __name__ == "__main__":
    main()

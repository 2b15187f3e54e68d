"""The causal mode of the same weights, along one prefix: it reads what was denoised, or writes on by itself.

The encoder reads as plain Gemma does, so what it expects behind each token says how likely the next one was, and which
might come. Reading costs the pass that stitches a canvas and a head; no more than CHUNK rows of logits are alive at a
time. Writing costs a pass for each token.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_dgemma.diffusion import sampling
from mlx_dgemma.diffusion.denoiser import Pause, pauses
from mlx_dgemma.diffusion.noise import Noise
from mlx_dgemma.diffusion.sampling import Sampler
from mlx_dgemma.model import host, memory
from mlx_dgemma.model.cache import PrefixCache
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import chunks, last_state
from mlx_dgemma.text.run import Run
from mlx_dgemma.text.score import CHUNK
from mlx_dgemma.text.transcript import Committed


class Causal:
    """Reader and writer over one prefix, which it makes longer.

    Attributes:
        last: the hidden state behind the prefix's last token, (1, 1, H).
    """

    def __init__(self, run: Run, cache: PrefixCache, noise: Noise, last: mx.array):
        self.run, self.model, self.cache, self.noise, self.last = run, run.model, cache, noise, last
        sampler, steps = Sampler.of(run.settings), run.settings.max_denoising_steps
        self._temperature = sampler.temperature_at(1, steps)  # what a canvas ends on, whatever the schedule
        self._draws = sampler.choice.draws

    def read(self, tokens: Sequence[int]) -> Generator[Pause, None, list[float]]:
        """Tokens join the prefix; the log-probability of each, nats, or nothing if the request did not ask."""
        found: list[float] = []
        left = list(tokens)

        def read(hidden: mx.array) -> None:
            if self.run.request.causal_log_p:
                before = mx.concatenate([self.last, hidden[:, :-1]], axis=1)
                found.extend(log_p_of(self.model, before, left[: hidden.shape[1]])[0])
                del left[: hidden.shape[1]]
            self.last = last_state(hidden)

        yield from pauses(chunks(self.model, mx.array([left]), self.cache, read=read))
        return found

    def judge(self, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
        """What `log_p_of` says of tokens behind the prefix, which stays as it was."""
        hidden = self.model.peek(mx.array([list(tokens)]), self.cache)
        return log_p_of(self.model, mx.concatenate([self.last, hidden[:, :-1]], axis=1), tokens)

    def write(self, count: int) -> Generator[Pause, None, Committed]:
        """Up to so many tokens, which join the prefix; a stop token is the last of them."""
        written = _Span()
        self.cache.reserve(self.cache.length + self.model.config.canvas_length)
        ahead = self._next()
        for left in reversed(range(count)):
            token, ahead = ahead, self._next() if left else ahead  # computed while the host reads the one before
            if written.add(token) in self.run.settings.stops:
                break
            yield Pause()
        mx.clear_cache()
        reads = written.causal_log_p if self.run.request.causal_log_p else ()
        return Committed(
            written.tokens, 0, written.log_p, written.entropy, written.alternatives, causal_log_p=reads, is_causal=True
        )

    def _next(self) -> "_Token":
        """The next token, and what it does to the prefix; starts it and does not wait."""
        logits = self.model.logits(self.last)  # (1, 1, V)
        log_p = sampling.log_probabilities(logits / self._temperature)
        if self._draws:
            token = sampling.draw(log_p, mx.array(self.noise.uniform((1, 1))))
        else:
            token = logits.argmax(axis=-1).astype(mx.int32)
        own = [mx.take_along_axis(of, token[..., None], axis=-1) for of in (log_p, logits)]
        told = [own[0], sampling.token_entropy(log_p), own[1] - mx.logsumexp(logits, axis=-1, keepdims=True)]
        made = _Token(token, mx.concatenate([number.flatten() for number in told]), *self._likeliest(log_p))
        self.last = self.model.encode(token, self.cache)
        memory.start([*made.arrays(), self.last, *self.cache.arrays()])
        return made

    def _likeliest(self, log_p: mx.array) -> tuple[mx.array, mx.array]:
        """As many of the likeliest ids as the request wants, likeliest first, and their log-probabilities: (K,)."""
        row, count = log_p.flatten(), self.run.request.alternatives
        places = mx.argpartition(row, -count)[-count:] if count else mx.zeros((0,), mx.uint32)
        places = places[mx.argsort(-row[places])]
        return places, row[places]


@dataclass(frozen=True)
class _Token:
    """A token that is being computed: its id (1, 1); log_p, entropy, causal log_p (3,); the likeliest (K,) twice."""

    token: mx.array
    told: mx.array
    likeliest: mx.array
    likeliest_log_p: mx.array

    def arrays(self) -> list[mx.array]:
        return [self.token, self.told, self.likeliest, self.likeliest_log_p]


class _Span:
    """What was written, as the host knows it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_p: list[float] = []
        self.entropy: list[float] = []
        self.causal_log_p: list[float] = []
        self.alternatives: list[list[tuple[int, float]]] = []

    def add(self, made: _Token) -> int:
        """Waits for a token; its id."""
        (token,) = host.ints(made.token.flatten())
        log_p, entropy, causal = host.floats(made.told)
        self.tokens.append(token)
        self.log_p.append(log_p)
        self.entropy.append(entropy)
        self.causal_log_p.append(causal)
        ids, own = host.ints(made.likeliest), host.floats(made.likeliest_log_p)
        self.alternatives.append([*zip(ids, own, strict=True)])
        return token


def log_p_of(model: DiffusionGemma, hidden: mx.array, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Log-probability of each token, and of the likeliest in its place, by hidden states (1, T, H) behind those before.

    Nats, of the distribution at temperature 1.
    """
    own: list[float] = []
    best: list[float] = []
    for start in range(0, len(tokens), CHUNK):
        logits = model.logits(hidden[:, start : start + CHUNK])  # (1, ≤ CHUNK, V)
        ids = mx.array(list(tokens[start : start + CHUNK]))[None, :, None]
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        told = [
            (mx.take_along_axis(logits, ids, axis=-1) - total).flatten(),
            (logits.max(-1, keepdims=True) - total).flatten(),
        ]
        memory.finish(told)
        own, best = own + host.floats(told[0]), best + host.floats(told[1])
    return own, best

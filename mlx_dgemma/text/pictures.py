"""Images in messages: what is read of them, and the ids that stand for them in a prompt.

A template writes one image token for an image. In its place come the token that begins an image, a name at each of
its positions, and the token that ends it. The name is a negative integer, a hash of pixels and budget: what reads the
prompt finds the image by it (see `model.prefill`), and two prompts are alike only where their images are (see
`prefixes`).
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.diffusion_gemma import DiffusionGemma
from mlx_dgemma.model.prefill import Sight
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.text.images import Picture, Source, read_picture
from mlx_dgemma.text.messages import IMAGES, Message, normalised
from mlx_dgemma.text.request import Prompt, Request

MOST = 64  # images of one prompt


class Seen(NamedTuple):
    """A prompt whose images were read.

    Attributes:
        prompt: as it was, or messages with a `Picture` as each part's image.
        raw: the images of a prompt that is no messages, where its image tokens stand.
        config: of what sees images; None for a model that cannot, and a prompt without.
    """

    prompt: Prompt
    raw: Sequence[Picture] = ()
    config: VisionConfig | None = None

    @property
    def pictures(self) -> Sequence[Picture]:
        """All images, in order."""
        return self.raw if self.config is None else self.raw or pictures_of(self.prompt)

    def named(self, ids: list[int], prompt: Prompt) -> list[int]:
        """Ids of this prompt, or of some of its messages, with a name at each of an image's positions.

        Raises:
            DGemmaError: more or fewer image tokens than images; an id below zero.
        """
        return ids if self.config is None else with_pictures(ids, self.raw or pictures_of(prompt), self.config)

    def ids(self, names: list[int]) -> list[int]:
        """Names as ids: an image has its token's at each of its positions."""
        config = self.config
        return names if config is None else [config.image_token_id if name < 0 else name for name in names]


def see(model: DiffusionGemma, request: Request) -> Seen:
    """Reads the images of a request.

    Raises:
        DGemmaError: a model that cannot see, images beside messages, an image that cannot be read, too many of them.
    """
    prompt, images = request.prompt, list(request.images)
    if isinstance(prompt, list) and any(True for _ in _parts(prompt)):
        if images:
            raise DGemmaError("the messages hold images, and there are others beside them; put all into the messages")
        config = model.require_eyes().config
        return Seen(read_pictures(prompt, config, request.image_tokens), (), config)
    if not images:  # where something sees, an image token must have its image
        return Seen(prompt, (), None if model.eyes is None else model.eyes.config)
    config = model.require_eyes().config
    if isinstance(prompt, list) and any(isinstance(item, dict) for item in prompt):
        raise DGemmaError('give images as parts of the messages: {"type": "image", "image": …}')
    if isinstance(prompt, str) and request.chat_template:
        return Seen(read_pictures(_asked(images, prompt), config, request.image_tokens), (), config)
    return Seen(prompt, pictures_of(read_pictures(_asked(images), config, request.image_tokens)), config)


def _asked(images: Sequence[Source], text: str | None = None) -> list[Message]:
    """The user's message of these images, and a text behind them."""
    content: list[Message] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": content if text is None else [*content, {"type": "text", "text": text}]}]


def read_pictures(messages: Sequence[object], config: VisionConfig, budget: int | None) -> list[Message]:
    """The messages, normalised, with a `Picture` as each part's image.

    Args:
        messages: as clients send them.
        config: how large a patch is, and the budget of the checkpoint.
        budget: soft tokens of an image at most; None takes the checkpoint's.

    Raises:
        DGemmaError: malformed messages, an image that cannot be read, too many of them.
    """
    checked = normalised(messages)
    found = list(_parts(checked))
    if len(found) > MOST:
        raise DGemmaError(f"the prompt has {len(found)} images; give at most {MOST}")
    patch, pool = config.patch_size, config.pooling_kernel_size
    for number, part in enumerate(found, 1):
        if not isinstance(part["image"], Picture):
            part["image"] = read_picture(
                part["image"], f"image {number}", patch=patch, pool=pool, budget=budget or config.soft_tokens
            )
    return checked


def pictures_of(prompt: Prompt) -> list[Picture]:
    """The images of messages that `read_pictures` made, in order."""
    parts = _parts(prompt) if isinstance(prompt, list) else ()
    return [part["image"] for part in parts]


def for_template(messages: Sequence[Message]) -> list[Message]:
    """The messages as a chat template takes them, which writes a token for an image and does not look at it."""

    def shown(part: Message) -> Message:
        return {"type": "image"} if part["type"] == "image" else part

    return [
        {**own, "content": [shown(part) for part in own["content"]]} if isinstance(own["content"], list) else own
        for own in messages
    ]


def described(request: Request, pictures: Sequence[Picture]) -> Prompt:
    """A request's prompt as JSON: of the images in messages their sizes in pixels and tokens, and nothing they show.

    Args:
        request: with a text and images it is told as messages; a raw text and ids stay what they are.
        pictures: its images, in order.
    """
    prompt = request.prompt
    if isinstance(prompt, str) and request.chat_template and pictures:
        prompt = _asked(request.images, prompt)
    if not pictures or not isinstance(prompt, list) or not any(isinstance(item, dict) for item in prompt):
        return prompt
    messages, left = normalised(prompt), iter(pictures)
    for part in _parts(messages):
        own = next(left)
        del part["image"]
        part |= {"width": own.width, "height": own.height, "tokens": own.tokens}
    return messages


def with_pictures(ids: Sequence[int], pictures: Sequence[Picture], config: VisionConfig) -> list[int]:
    """Ids of a prompt in which a name stands at each of an image's positions.

    Raises:
        DGemmaError: more or fewer image tokens than images; an id below zero, which would be taken for a name.
    """
    count, token = ids.count(config.image_token_id), config.image_token_id
    if count != len(pictures):
        raise DGemmaError(
            f"the prompt has {count} image token{'s' * (count != 1)} (id {token}) for {len(pictures)} "
            f"image{'s' * (len(pictures) != 1)}; a raw prompt needs one for each, others a chat template with images"
        )
    if min(ids, default=0) < 0:
        raise DGemmaError(f"token id {min(ids)} is outside the vocabulary; give ids from 0 on")
    named: list[int] = []
    left = iter(pictures)
    for token in ids:
        if token == config.image_token_id:
            own = next(left)
            named += [config.boi_token_id, *[own.key] * own.tokens, config.eoi_token_id]
        else:
            named.append(token)
    return named


def _parts(messages: Iterable[Any]) -> Iterator[Message]:
    """The parts of messages that are images."""
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in IMAGES:
                yield part  # type: ignore[misc]


class Sights(Mapping[int, Sight]):
    """What the tower makes of images, by their names; `seconds` that it took so far."""

    def __init__(self, model: DiffusionGemma, pictures: Sequence[Picture]):
        self._model, self._pictures = model, {own.key: own for own in pictures}
        self.seconds = 0.0

    def __getitem__(self, name: int) -> Sight:
        picture = self._pictures[name]

        def see() -> mx.array:
            began = time.perf_counter()
            features = self._model.require_eyes().see(mx.array(picture.patches()), picture.grid)
            self.seconds += time.perf_counter() - began
            return features

        return see

    def __iter__(self) -> Iterator[int]:
        return iter(self._pictures)

    def __len__(self) -> int:
        return len(self._pictures)

"""Images in bodies: data: URLs and nothing else, so that no client makes the server open a file or fetch anything.

A part that is an image becomes {"type": "image", "image": Encoded}, as it came. A thread of its own decodes it, so that
neither the loop nor the model waits; it is a `Picture` then, and nothing else gets to the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlx_dgemma.errors import DGemmaError
from mlx_dgemma.model.vision_config import VisionConfig
from mlx_dgemma.server.bodies import Fields
from mlx_dgemma.server.errors import Refused, refusal
from mlx_dgemma.text.images import BUDGETS, Picture, from_data_url, read_picture
from mlx_dgemma.text.messages import IMAGES
from mlx_dgemma.text.request import MAX_IMAGES, Message

LOW = BUDGETS[0]  # soft tokens of an image of which the client wants no details
URL = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
INPUT = '{"type": "input_image", "image_url": "data:image/png;base64,…"}'
SOURCE = '{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "…"}}'


@dataclass(frozen=True)
class Encoded:
    """An image as it came.

    Attributes:
        url: a data: URL, or what else the client gave for one.
        place: in the body.
        is_low: whether the client wants no details.
    """

    url: str
    place: str
    is_low: bool = False

    def decoded(self, config: VisionConfig, budget: int | None) -> Picture:
        """The image, within a budget of soft tokens; None is the checkpoint's.

        Raises:
            DGemmaError: no data: URL, or no image that can be read.
        """
        own = LOW if self.is_low else budget or config.soft_tokens
        content = from_data_url(self.url, self.place)
        return read_picture(content, self.place, patch=config.patch_size, pool=config.pooling_kernel_size, budget=own)


def from_url(part: Message, place: str) -> Message:
    """A part of OpenAI's: its address is the field's text, or stands in an object; `detail` is beside it."""
    fields = Fields(part, place)
    given = part.get("image_url")
    if isinstance(given, dict):
        fields = Fields(given, fields.at("image_url"))
        given = given.get("url")
    if part["type"] == "image" or not isinstance(given, str):
        form = INPUT if part["type"] == "input_image" else URL
        raise Refused(400, f"{place}: an image is given as {form}", param=place)
    return {"type": "image", "image": Encoded(given, place, fields.text("detail") == "low")}


def from_source(block: Message, place: str) -> Message:
    """A block of Anthropic's."""
    source = Fields(block, place).fields("source")
    data, media = (None, None) if source is None else (source.text("data"), source.text("media_type"))
    if source is None or source.text("type") != "base64" or data is None or media is None:
        raise Refused(400, f"{place}: an image is given as {SOURCE}; nothing is fetched", param=place)
    return {"type": "image", "image": Encoded(f"data:{media};base64,{data}", place)}


def content_of(
    content: object, place: str, read: Callable[[Message, str], Message], say: Callable[[object, str], str]
) -> str | list[Message]:
    """A content: a text, or parts where some are images, which `read` makes; `say` makes one text of the others."""
    if not isinstance(content, list) or not any(map(_is_image, content)):
        return say(content, place)
    return [
        read(part, f"{place}[{number}]") if _is_image(part) else {"type": "text", "text": say([part], place)}
        for number, part in enumerate(content)
    ]


def with_images(message: Message, place: str) -> Message:
    """A message of OpenAI's, in which images are as above; its other parts are as they were."""
    content = message.get("content")
    if not isinstance(content, list) or not any(map(_is_image, content)):
        return message
    made = list[Message]()
    for number, part in enumerate(content):
        own = f"{place}.content[{number}]"
        if not isinstance(part, dict) or "type" not in part:  # beside parts without one it would be no image, but JSON
            raise Refused(400, f"{own} has no type", param=own)
        made.append(from_url(part, own) if _is_image(part) else part)
    return {**message, "content": made}


def images_of(messages: Sequence[Message]) -> Iterator[Message]:
    """The parts of messages that are images."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if _is_image(part):
                yield part


def check_decoded(messages: Sequence[Message]) -> None:
    """Raises Refused for an image that was not decoded here: it could be a path."""
    if not all(isinstance(part.get("image"), Picture) for part in images_of(messages)):
        raise Refused(400, f"messages: an image is given as {URL}", param="messages")


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGES


class Decoder:
    """Decodes images, one after another, as each may take much memory."""

    def __init__(self, most: int = MAX_IMAGES):
        """`most`: images of a request."""
        self.most = most
        self._thread = ThreadPoolExecutor(1, "images")

    def check(self, messages: Sequence[Message]) -> bool:
        """Whether messages hold images.

        Raises:
            Refused: too many.
        """
        count = sum(1 for _ in images_of(messages))
        if count > self.most:
            raise Refused(400, f"the messages have {count} images; give at most {self.most}", param="messages")
        return count > 0

    async def decode(self, messages: Sequence[Message], config: VisionConfig, budget: int | None) -> list[Message]:
        """The messages, with a `Picture` as each image.

        Raises:
            Refused: an image that cannot be read.
        """
        loop, made = asyncio.get_running_loop(), list[Message]()
        for message in messages:
            content: Any = message.get("content")
            parts = list(content) if isinstance(content, list) else content
            for at, part in enumerate(parts if isinstance(parts, list) else ()):
                image = part.get("image") if _is_image(part) else None
                if isinstance(image, Encoded):  # one at a time: others come in between, and a client may go away
                    try:
                        found = await loop.run_in_executor(self._thread, image.decoded, config, budget)
                    except DGemmaError as error:
                        raise refusal(error) from None
                    parts[at] = {"type": "image", "image": found}
            made.append(message if parts is content else {**message, "content": parts})
        return made

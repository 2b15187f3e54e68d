"""All kinds by name; a new one is a module here and an entry below."""

from tests.fuzz import (
    chat_templates,
    config,
    conversions,
    headers,
    images,
    journals,
    options,
    prompts,
    settings,
    steering,
    tokenizers,
    traces,
)
from tests.fuzz.kind import Kind

MODULES = (
    prompts, steering, settings, options, config, tokenizers, chat_templates, headers, traces, journals, images,
    conversions,
)  # fmt: skip
KINDS: dict[str, Kind] = {module.KIND.name: module.KIND for module in MODULES}

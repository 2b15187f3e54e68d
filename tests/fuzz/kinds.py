"""All kinds by name; a new one is a module here and an entry below."""

from tests.fuzz import config, headers, prompts, settings, steering, tokenizers
from tests.fuzz.kind import Kind

MODULES = (prompts, steering, settings, config, headers, tokenizers)
KINDS: dict[str, Kind] = {module.KIND.name: module.KIND for module in MODULES}

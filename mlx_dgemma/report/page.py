"""A trace as one self-contained HTML page: style, script and data inside, nothing fetched.

What the trace says reaches the page as escaped text, or as JSON that the script puts into the page as text; control and
direction characters are shown as pictures. A content security policy with the hashes of our own style and script lets
nothing else run or load.
"""

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dgemma.files import write_whole
from mlx_dgemma.report.summary import about, prompt_text, summary
from mlx_dgemma.report.texts import SCALE, RecordedTexts, ends, one_line, shown
from mlx_dgemma.trace.trace import Trace
from mlx_dgemma.web import SHARED, STYLE, asset, inlined

_SCRIPTS = ("data.js", "legend.js", "tokens.js", "tooltip.js", "heatmap.js", "curves.js", "page.js")
_SERIES = ("canvas_index", "step", "remaining", "temperature", "accepted_count", "mean_entropy", "seconds", "rows")
_CELLS = {"canvas": "<i4", "draft": "<i4", "entropy": "<f4", "accepted": "u1", "clamped": "u1", "computed": "u1"}


def write_report(trace: Trace, path: str | Path) -> None:
    """Writes the page of a trace.

    Raises:
        DGemmaError: the file cannot be written there.
    """
    page = render(trace).encode("utf-8", "replace")
    write_whole(path, lambda file: file.write(page))


def render(trace: Trace) -> str:
    """The page of a trace, as HTML."""
    prompt = prompt_text(trace)
    style = asset(STYLE) + _asset("page.css")
    scripts = [*(inlined(asset(name)) for name in SHARED), *map(_asset, _SCRIPTS)]
    script = '(() => {\n"use strict";\n' + "\n".join(scripts) + "\n})();\n"
    rows = "".join(f"<tr><th scope=row>{_text(n)}</th><td>{_text(v)}</td></tr>" for n, v in summary(trace))
    parts = {
        "title": html.escape(f"{one_line(prompt, 60)} · DiffusionGemma trace"),
        "style_hash": _hash(style),
        "style": style,
        "script_hash": _hash(script),
        "script": script,
        "prompt": _text(prompt),
        "about": _text(about(trace)),
        "text": _text(trace.text),
        "summary": rows,
        "trace": _json(_content(trace)),
    }
    # in one pass, so that what is put in is not searched for places again
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def _text(text: str) -> str:
    return html.escape(shown(text))


def _asset(name: str) -> str:
    return asset(name, "mlx_dgemma.report")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _content(trace: Trace) -> dict[str, Any]:
    """What the script reads: cells as base64 of little-endian arrays, series as lists, texts by token id."""
    steps, rows, positions = trace.canvas.shape
    return {
        "steps": steps,
        "rows": rows,
        "positions": positions,
        "arrays": {name: _base64(getattr(trace, name), dtype) for name, dtype in _CELLS.items()},
        "series": {name: [_finite(value) for value in getattr(trace, name).tolist()] for name in _SERIES},
        "pieces": list(RecordedTexts(trace).items()),
        "ends": ends(trace).ravel().tolist(),
        "scale": SCALE,
        "confidence_threshold": trace.settings.get("confidence_threshold"),  # none beside a stopping rule of one's own
    }


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _json(content: Any) -> str:
    """ASCII JSON that may stand inside a script element: no character that HTML could take for markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

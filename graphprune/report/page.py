"""The report as one page: template, style, script and data in a single file that loads nothing.

What comes from a model (names above all) is not trusted: it is in the page as JSON in which no tag can end or begin,
and enters the document as text. A policy in the page forbids every request, and scripts and styles but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(data: Mapping[str, Any]) -> str:
    """Return the page for what `report_data` returns.

    >>> page({"model": "<script>", "record": {}}).count("<script>")  # its own
    1
    """
    style, script = _part("page.css"), _part("page.js") + _part("curve.js") + _part("graph.js")
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'"
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(str(data["model"])),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": as_json(data),
    }
    return re.sub(r"@@([A-Z]+)@@", lambda mark: parts[mark[1]], _part("page.html"))


def as_json(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element.

    >>> as_json({"a": "</script>"})
    '{"a": "\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return "".join(_ESCAPED.get(c, c) for c in text) if _ESCAPED.keys() & set(text) else text


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _part(name: str) -> str:
    return files("graphprune.report").joinpath(name).read_text(encoding="utf-8")

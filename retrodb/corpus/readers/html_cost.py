"""Whether an HTML page can be parsed in seconds, decided from its tags before it is parsed.

The parser (resiliparse on lexbor) takes time in proportion to the sum of the depths of all elements, and to the square of
the number of attributes of one element. Measured on one core: 24,000 nested `<div>` take 17 s, 40,000 attributes 4 s. The
deepest pages that people write have some hundred levels.
"""

from __future__ import annotations

import re

MAX_DEPTH_SUM = 30_000_000  # about 2 s
MAX_ATTRIBUTES = 20_000  # of one tag; about 1 s

_MIN_TAGS = 5_000  # fewer, all nested, stay below MAX_DEPTH_SUM
_MIN_TAG_CHARS = 2 * MAX_ATTRIBUTES  # an attribute has a character and a separator
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
_LONG_TAG = re.compile(rf"<[a-zA-Z][^<>]{{{_MIN_TAG_CHARS},}}")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_ATTRIBUTE = re.compile(r"[^\s/=]+")
_RAW_TEXT = frozenset(("script", "style", "textarea", "title", "xmp", "noembed", "noframes", "iframe"))
# Elements without an end tag, or whose end tag may be left out: they are not counted as levels.
_NO_LEVEL = re.compile(
    "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
    "|p|li|d[dt]|t[drh]|thead|tbody|tfoot|colgroup|option|optgroup|r[pt]|html|head|body"
)


def cost_fault(page: str) -> str | None:
    """The reason to refuse a page that would take too long: "nested-too-deep" or "too-many-attributes"; or None."""
    if page.count("<") > _MIN_TAGS and _depth_sum(page) > MAX_DEPTH_SUM:
        return "nested-too-deep"
    for tag in _LONG_TAG.finditer(page):
        if len(_ATTRIBUTE.findall(_QUOTED.sub("", tag[0]))) > MAX_ATTRIBUTES:
            return "too-many-attributes"
    return None


def _depth_sum(page: str) -> int:
    """The sum of the depths of all elements. An end tag closes the elements within its own, as parsers do."""
    stack: list[str] = []
    num_open: dict[str, int] = {}
    total = position = 0
    while (tag := _TAG.search(page, position)) and total <= MAX_DEPTH_SUM:
        name, position = tag[2].lower(), tag.end()
        if tag[1]:
            while num_open.get(name):
                closed = stack.pop()
                num_open[closed] -= 1
                if closed == name:
                    break
            continue
        total += len(stack)
        if name in _RAW_TEXT:
            position = page.find("</", position)
            if position < 0:
                break
        elif not _NO_LEVEL.fullmatch(name):
            stack.append(name)
            num_open[name] = num_open.get(name, 0) + 1
    return total

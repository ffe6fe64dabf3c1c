"""The header of a text file, as site generators read it: YAML between lines of ``---``, or TOML between lines of ``+++``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any

import orjson

_HEADERS = {
    "---": re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
    "+++": re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
}

_MAX_DEPTH = 100  # of values in values


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The fields of a file's header, as JSON would give them, and what follows it.

    A text without a header has no fields and is returned whole. So is one in which something else than fields stands
    between two such lines, as under a rule at its top, and one with nothing but blanks after the header, whose fields
    are then all that it says.

    Raises:
        ValueError: the header is neither YAML nor TOML, or nothing that JSON can hold.
    """
    fence = text[:3]
    found = _HEADERS[fence].match(text) if fence in _HEADERS else None
    if found is None:
        return {}, text
    try:
        header = _PARSERS[fence](found[1])
        packed = orjson.dumps(header, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (RecursionError, TypeError) as error:  # TOML nested beyond reason, or too large a number
        raise ValueError(str(error)) from error
    if not isinstance(header, dict):
        return {}, text
    body = text[found.end() :]
    return orjson.loads(packed), text if not body or body.isspace() else body


def _plain(value: object) -> object:
    """What JSON has no word for; sets have no order of their own."""
    return sorted(value, key=str) if isinstance(value, set) else str(value)


def _yaml(header: str) -> object:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one, where PyYAML was built with it
    try:
        depth = 0
        for event in yaml.parse(header, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # A few aliases of aliases would be gigabytes once written out, and the compiled loader's stack has no guard.
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                raise ValueError("an alias, or nested beyond reason")
        return yaml.load(header, loader)
    except (yaml.YAMLError, LookupError, AttributeError) as error:  # the last two of PyYAML's own values, as "!!int"
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[str], object]] = {"---": _yaml, "+++": tomllib.loads}

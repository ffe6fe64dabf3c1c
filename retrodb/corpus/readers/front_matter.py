"""The header of a text file, as site generators read it: YAML between lines of ``---``, or TOML between lines of ``+++``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import orjson

_HEADERS = {
    "---": re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
    "+++": re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
}

_MAX_DEPTH = 100  # of nested values


def split_front_matter(text: str) -> tuple[dict[str, object], str]:
    """The fields of a file's header as JSON values, and the text after the header.

    A text without a header has no fields and is returned whole. The same is true if the lines between two fences are not
    fields, for example text below a horizontal rule. If only blanks follow the header, its fields are returned with the
    whole text.

    Raises:
        ValueError: the header is neither YAML nor TOML, or has a value that JSON cannot express.
    """
    fence = text[:3]
    match = _HEADERS[fence].match(text) if fence in _HEADERS else None
    if match is None:
        return {}, text
    try:
        header = _PARSERS[fence](match[1])
        packed = orjson.dumps(header, default=_json_value, option=orjson.OPT_NON_STR_KEYS)
    except (RecursionError, TypeError) as error:  # TOML that is nested too deep, or a number that is too large
        raise ValueError(str(error)) from error
    if not isinstance(header, dict):
        return {}, text
    body = text[match.end() :]
    return orjson.loads(packed), text if not body or body.isspace() else body


def _json_value(value: object) -> object:
    """A value for which JSON has no type, such as a date. Sets are sorted, because they have no order."""
    return sorted(value, key=str) if isinstance(value, set) else str(value)


def _parse_yaml(header: str) -> object:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one, if this PyYAML has it
    try:
        depth = 0
        for event in yaml.parse(header, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # A few aliases of aliases expand to gigabytes, and deep nesting overflows the compiled loader's stack.
            if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
                raise ValueError("an alias, or nested too deep")
        return yaml.load(header, loader)
    except (yaml.YAMLError, LookupError, AttributeError) as error:  # PyYAML raises the last two for tags like "!!int"
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[str], object]] = {"---": _parse_yaml, "+++": tomllib.loads}

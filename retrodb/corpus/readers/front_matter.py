"""The header of a text file, as site generators read it: YAML between lines of ``---``, or TOML between lines of ``+++``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import orjson

from retrodb.corpus.readers.field_names import DuplicateField

_HEADERS = {
    "---": re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
    "+++": re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:(?:\r?\n)+|\Z)", re.DOTALL | re.MULTILINE),
}

_MAX_DEPTH = 100  # of nested values
# Parsing a YAML header takes at most 2 s for each MiB. The parser of TOML takes the square of the length of a dotted key.
_MAX_CHARS = {"---": 1 << 20, "+++": 32 << 10}


def split_front_matter(text: str) -> tuple[dict[str, object], str]:
    """The fields of a file's header as JSON values, and the text after the header.

    A text without a header has no fields and is returned whole. The same is true if the lines between two fences are not
    fields, for example text below a horizontal rule. If only blanks follow the header, its fields are returned with the
    whole text.

    Raises:
        DuplicateField: two fields of the header have one name.
        ValueError: the header is neither YAML nor TOML, takes too long to parse, or has a value that JSON cannot express.
    """
    fence = text[:3]
    match = _HEADERS[fence].match(text) if fence in _HEADERS else None
    if match is None:
        return {}, text
    if len(match[1]) > _MAX_CHARS[fence]:
        raise ValueError(f"longer than {_MAX_CHARS[fence]:,} characters")
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


class _OpenMapping:
    """The names in a YAML mapping so far. PyYAML itself takes the last of two fields of one name."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._num_nodes = 0

    def add_node(self, scalar: str | None) -> None:
        """Count the next name or value; `scalar` is its text. Raises DuplicateField."""
        is_name, number = self._num_nodes % 2 == 0, self._num_nodes // 2 + 1
        self._num_nodes += 1
        if is_name and scalar is not None and scalar != "<<":  # a merge may be repeated
            first = self._names.setdefault(scalar, number)
            if first != number:
                raise DuplicateField(f"fields {first} and {number} are both named '{scalar}'")


def _parse_yaml(header: str) -> object:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled one, if this PyYAML has it
    try:
        open_mappings: list[_OpenMapping | None] = []  # None for a sequence
        for event in yaml.parse(header, loader):
            if isinstance(event, yaml.CollectionEndEvent):
                open_mappings.pop()
                continue
            if open_mappings and (mapping := open_mappings[-1]) and isinstance(event, yaml.NodeEvent):
                mapping.add_node(event.value if isinstance(event, yaml.ScalarEvent) else None)
            if isinstance(event, yaml.CollectionStartEvent):
                open_mappings.append(_OpenMapping() if isinstance(event, yaml.MappingStartEvent) else None)
            # A few aliases of aliases expand to gigabytes, and deep nesting overflows the compiled loader's stack.
            if isinstance(event, yaml.AliasEvent) or len(open_mappings) > _MAX_DEPTH:
                raise ValueError("an alias, or nested too deep")
        return yaml.load(header, loader)
    except (yaml.YAMLError, LookupError, AttributeError) as error:  # PyYAML raises the last two for tags like "!!int"
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[str], object]] = {"---": _parse_yaml, "+++": tomllib.loads}

"""Lists of document ids in files: one id per line, or JSON Lines where a line also names the source.

    docs/index.md
    {"id": "an id\\nwith a line feed"}
    {"id": "index.md", "source": "docs"}

A line is an id as it stands. Lines end in a line feed, with or without a carriage return. A file is UTF-8, or UTF-16 or
UTF-32 with a byte order mark.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from retrodb.errors import InputError, UsageError
from retrodb.printable import escape
from retrodb.view.named import DocumentName, Name

_REMEDY = 'A line is an id, or JSON: {"id": "ID"} or {"id": "ID", "source": "NAME"}.'
# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ENCODING_NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}


def read_id_list(path: str | Path) -> list[Name]:
    """The names in a file, in its order. Blank lines are skipped.

    Raises:
        UsageError: there is no such file.
        InputError: for a file that is not text, or a line that is JSON but not a name; file and line are named.
    """
    return [name for name in read_id_lines(path) if name != ""]


def read_id_lines(path: str | Path) -> list[Name]:
    """The name in each line of a file; "" for a blank line. Raises as `read_id_list`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(str(error.strerror or error), where=escape(str(path))) from error
    return parse_id_lines(content, str(path))


def parse_id_lines(content: bytes, where: str) -> list[Name]:
    """The name in each line of a list; "" for a blank line.

    Args:
        where: the name of the file, for errors.
    """
    lines = _decode(content, escape(where)).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [_name_in(line.removesuffix("\r"), f"{escape(where)}:{number}") for number, line in enumerate(lines, 1)]


def _decode(content: bytes, where: str) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"the list is not {_ENCODING_NAMES[encoding]} ({error.reason} at byte {error.start:,})"
        raise InputError(what, where=where, remedy=_reencode(content)) from error
    if "\0" in text and encoding == "utf-8":
        raise InputError("the list is not UTF-8 text: it contains zero bytes", where=where, remedy=_reencode(content))
    return text


def _reencode(content: bytes) -> str:
    """How to make the list UTF-8, with a guess at its encoding."""
    half = len(content) // 4 + 1
    for encoding, zeros in (("UTF-16LE", content[1::2]), ("UTF-16BE", content[::2])):
        if zeros.count(0) >= half:
            return f"It looks like {encoding} without a byte order mark. Convert it: iconv -f {encoding} -t UTF-8."
    return "If it is Latin-1, convert it: iconv -f ISO-8859-1 -t UTF-8."


def _name_in(line: str, where: str) -> Name:
    if not line.startswith('{"') and not (line.startswith("{") and line.endswith("}")):
        return line
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.startswith('{"'):
            return line  # such as {1b4e28ba-2fa1-11d2}
        raise InputError(
            f"the line begins like JSON, but is not valid JSON ({error})", where=where, remedy=_REMEDY
        ) from error
    record.pop("message_type", None)  # of a line that 'retrodb sql --json' printed
    doc_id = record.pop("id", None) if "id" in record else record.pop("doc_id", None)
    source = record.pop("source", None)
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        doc_id = str(doc_id)
    if not isinstance(doc_id, str) or not isinstance(source, str | None) or record:
        what = (
            f"unknown key '{escape(next(iter(record)))}'" if record else "the id or the source is missing or not text"
        )
        raise InputError(what, where=where, remedy=_REMEDY)
    return DocumentName(doc_id, source)

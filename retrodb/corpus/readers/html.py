"""HTML pages -> text, by resiliparse (the `warc` extra)."""

from __future__ import annotations

from collections.abc import Iterator

from retrodb.corpus.document import Document, Fields, Limits, RecordError, Reject, documents_of, excerpt_of
from retrodb.corpus.readers.html_cost import cost_fault
from retrodb.corpus.readers.open_file import OpenFile, read_whole
from retrodb.errors import MissingDependency


def read_html(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """One file is one document: the main text of the page, with its title as metadata."""
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    try:
        record = page_record(content)
    except RecordError as error:
        yield Reject(source.path, "byte 0", error.reason, excerpt_of(content))
        return
    yield from documents_of(record, fields, limits, path=source.path, location="byte 0", doc_id=source.name)


def is_charset(name: str) -> bool:
    """Whether Python can decode text of this encoding."""
    try:
        b"a".decode(name, errors="replace")
    except (LookupError, ValueError):  # also of codecs that are not of text, or always fail: "hex", "idna", "undefined"
        return False
    return True


def page_record(content: bytes, charset: str | None = None) -> dict[str, object]:
    """{"text": main text, "title": title if there is one} of a page.

    The main text has no navigation, headers or footers. If no main text is detected, it is all text of the page.

    Args:
        charset: the encoding that the server named. Without it, or if it is unknown, the page's own declaration is used, or
            a guess. Browsers do the same.

    Raises:
        RecordError: the page would take too long.
        MissingDependency: resiliparse is not installed.
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        remedy = "Install it with: pip install 'retrodb[warc]'"
        raise MissingDependency("HTML pages need the package resiliparse", remedy=remedy) from error

    encoding = charset if charset and is_charset(charset) else detect_encoding(content, from_html_meta=True)
    if not encoding or not is_charset(encoding):
        encoding = "utf-8"
    page = bytes_to_str(content, encoding, errors="replace")
    if fault := cost_fault(page):
        raise RecordError(fault)
    tree = HTMLTree.parse(page)
    main = extract_plain_text(tree, main_content=True) or extract_plain_text(tree)
    title = (tree.title or "").strip()
    return {"text": main, "title": title} if title else {"text": main}

"""HTML pages -> text, by resiliparse (the `warc` extra)."""

from __future__ import annotations

from collections.abc import Iterator

from retrodb.corpus.document import Document, Fields, Limits, Reject, documents_of
from retrodb.corpus.readers.open_file import OpenFile, read_whole
from retrodb.errors import MissingDependency


def read_html(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """One file is one document: the main text of the page, with its title as metadata."""
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        yield content
        return
    record = page_record(content)
    yield from documents_of(record, fields, limits, path=source.path, location="byte 0", doc_id=source.name)


def page_record(content: bytes, charset: str | None = None) -> dict[str, object]:
    """{"text": main text, "title": title if there is one} of a page.

    The main text has no navigation, headers or footers. If no main text is detected, it is all text of the page.

    Args:
        charset: the encoding that the server named; without it, the page's own declaration is used, or a guess.

    Raises:
        MissingDependency: resiliparse is not installed.
    """
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        remedy = "Install it with: pip install 'retrodb[warc]'"
        raise MissingDependency("HTML pages need the package resiliparse", remedy=remedy) from error

    encoding = charset or detect_encoding(content, from_html_meta=True) or "utf-8"
    tree = HTMLTree.parse(bytes_to_str(content, encoding, errors="replace"))
    main = extract_plain_text(tree, main_content=True) or extract_plain_text(tree)
    title = (tree.title or "").strip()
    return {"text": main, "title": title} if title else {"text": main}

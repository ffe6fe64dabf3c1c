"""A documentation site of made-up words: Markdown and HTML pages with front matter, pictures among them, and its new version."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

from made_documents import made_text

SECTIONS = ("install", "guide", "reference")
PAGES_PER_SECTION = 9


def picture(seed: str) -> bytes:
    """A PNG picture of 8 x 8 grey pixels."""
    pixels = random.Random(seed).randbytes(64)
    lines = b"".join(b"\0" + pixels[at : at + 8] for at in range(0, 64, 8))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _block(b"IHDR", header) + _block(b"IDAT", zlib.compress(lines)) + _block(b"IEND", b"")


def page(name: str, version: int = 1, image: str = "overview.png") -> str:
    """A Markdown page with a header, two sections and a picture. Only the last section depends on the version."""
    section, _, stem = name.rpartition("/")
    title = f"{stem.capitalize()} of {made_text(name, 1)}"
    header = f"---\ntitle: {title}\nsection: {section or 'home'}\nversion: {version}\n---\n"
    body = f"# {title}\n\n{made_text(name, 90)}.\n\n![A view]({image})\n\n"
    return header + body + f"## More\n\n{made_text(f'{name} {version}', 60)}.\n"


def html_page(name: str) -> str:
    """An HTML page with a picture."""
    return (
        f"<!DOCTYPE html>\n<html><head><title>{name}</title><style>p {{ margin: 0 }}</style></head>\n"
        f'<body><h1>{name}</h1><p>{made_text(name, 120)}.</p><img src="img/overview.png" alt="A view"></body></html>\n'
    )


def write_site(folder: Path) -> None:
    """Version 1: 28 Markdown pages, 2 HTML pages, an empty page and 4 pictures."""
    (folder / "img").mkdir(parents=True)
    (folder / "index.md").write_text(page("index", image="img/overview.png"))
    for name in ("about", "contact"):
        (folder / f"{name}.html").write_text(html_page(name))
    for section in SECTIONS:
        (folder / section).mkdir()
        (folder / section / "overview.png").write_bytes(picture(section))
        for number in range(PAGES_PER_SECTION):
            name = f"{section}/step{number}"
            (folder / f"{name}.md").write_text(page(name))
    (folder / "draft.md").touch()
    (folder / "img/overview.png").write_bytes(picture("home"))


def write_new_version(folder: Path) -> None:
    """Version 2: two pages added, two removed, three changed, one with a new header only, one picture renamed."""
    for name in ("guide/step20", "reference/step20"):
        (folder / f"{name}.md").write_text(page(name, 2))
    for name in ("install/step8", "reference/step8"):
        (folder / f"{name}.md").unlink()
    for name in ("guide/step0", "guide/step1", "install/step0"):
        (folder / f"{name}.md").write_text(page(name, 2))
    same_text = folder / "reference/step0.md"
    same_text.write_text(same_text.read_text().replace("version: 1", "version: 2"))
    (folder / "guide/overview.png").rename(folder / "guide/first view.png")


def _block(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

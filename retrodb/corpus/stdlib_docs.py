"""A corpus that every Python carries: the documentation of its own standard library, for the demo and for tests.

Documents are what `help()` shows: one for every module, class, function and method with a docstring, under its
qualified name (`os.path.join`), and the topics of the language reference (`topics.with`). Pages of modules contain those
of their classes, and modules that stand for each other (`os.path`, `posixpath`, `ntpath`) say the same: overlaps as real
corpora have them.

Rendering a module means importing it, so it happens in a Python of its own, which imports nothing but the standard
library. The text does not depend on the machine: sections with paths and values are left out, memory addresses and the
installation's folders are cut.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import ModuleType

# Held out by name, because `posixpath`, which is kept, repeats them: the leak scan has something true to find.
_HELD_OUT = ("ntpath", "os.path")
# One module in 32 beside them. Of the 32 slices this one has modules of middling size (contextlib, threading).
_HELD_OUT_MODULUS, _HELD_OUT_REMAINDER = 32, 12
_TOPICS = "topics"
# Modules whose import opens a browser or a window or prints, that are tests, or of which it is known that they go.
_SKIPPED = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "distutils", "pydoc_data"}
_SKIPPED_ANYWHERE = {"test", "tests"}
# Sections of a module's page that hold paths, values of this process (os.environ!), or the same sentences on every page.
_SECTION = re.compile(r"^(?=[A-Z][A-Z ]*$)", re.MULTILINE)
_CUT_SECTIONS = ("FILE\n", "DATA\n", "MODULE REFERENCE\n")
# What a class inherits is on the page of its base; repeated, it would make all exceptions one text.
_INHERITED = re.compile(
    r"^( *\|)(?: +-{70}\n\1)? +[A-Z].* inherited from .*:\n(?:\1(?! +-{70}).*(?:\n|\Z))*", re.MULTILINE
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """The documents `(doc_id, text)` of the running Python, always the same and in the same order."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # The order of a printed set is part of a text.
    environment |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    command = [sys.executable, "-P", "-s", "-W", "ignore", __file__]
    lines = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    ).stdout
    for line in lines.splitlines():
        doc_id, text = json.loads(line)
        yield doc_id, text


def is_held_out(doc_id: str) -> bool:
    """Whether a document is in the test set: `ntpath`, `os.path`, and one in 32 modules and topics by a hash of the name.

    A module goes with everything in it: what the test set shares with the rest, two modules really both say.
    """
    if any(doc_id == name or doc_id.startswith(f"{name}.") for name in _HELD_OUT):
        return True
    top = doc_id if doc_id.startswith(f"{_TOPICS}.") else doc_id.partition(".")[0]
    return hashlib.sha256(top.encode()).digest()[0] % _HELD_OUT_MODULUS == _HELD_OUT_REMAINDER


def _render() -> Iterator[tuple[str, str]]:
    """The documents, in a process that may be littered with imports and lose its environment."""
    folders = {sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix, os.path.expanduser("~"), os.getcwd()} - {"/"}
    inspect.getcomments = _no_comments
    os.environ.clear()  # it is the default of some parameters, and defaults are printed
    # The longest first: the library lies inside the prefix.
    folder = re.compile("|".join(re.escape(each) for each in sorted(folders, key=len, reverse=True)))
    seen: set[object] = set()
    for doc_id, text in _pages():
        page = folder.sub("...", _ADDRESS.sub("", _INHERITED.sub("", text))).strip()
        # A module that hands on what its submodules define says it once; two modules may say the same.
        keys = {doc_id, (doc_id.partition(".")[0], page)}
        if page and not keys & seen:
            seen |= keys
            yield doc_id, page


def _pages() -> Iterator[tuple[str, str]]:
    for name in sorted([*sys.stdlib_module_names, "os.path"]):
        for module_name, module in _modules(name):
            yield module_name, _module_page(module)
            yield from _members(module_name, module)
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"{_TOPICS}.{name}", topics[name]


def _modules(name: str) -> Iterator[tuple[str, ModuleType]]:
    """A module and the modules below it, less those that are private or cannot be imported here."""
    last = name.rpartition(".")[2]
    if last.startswith(("_", "xx")) or last in _SKIPPED_ANYWHERE or name in _SKIPPED:
        return
    try:
        module = importlib.import_module(name)
    except ImportError:  # of another platform, or left out when this Python was built
        return
    yield name, module
    for child in sorted(each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))):
        yield from _modules(f"{name}.{child}")


def _document(value: object, name: str | None = None) -> str:
    return pydoc.plain(pydoc.text.document(value, name))


# pydoc spends half its time on finding remarks in the source, which are no documentation. `wraps`: inspect has a page too.
@functools.wraps(inspect.getcomments)
def _no_comments(object: object) -> str | None:
    return None


def _module_page(module: ModuleType) -> str:
    sections = _SECTION.split(_document(module))
    return "".join(section for section in sections if not section.startswith(_CUT_SECTIONS))


def _members(prefix: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    """A page for every documented class and function that a module offers, and for every method that a class defines."""
    offered = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items()):
        is_offered = name in offered if offered is not None else inspect.getmodule(value) is module
        if not is_offered or name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if value.__doc__:
            yield f"{prefix}.{name}", _document(value, name)
        if inspect.isclass(value):
            yield from _methods(f"{prefix}.{name}", value)


def _methods(prefix: str, owner: type) -> Iterator[tuple[str, str]]:
    for name in sorted(vars(owner)):
        value = getattr(owner, name, None)
        if not name.startswith("_") and inspect.isroutine(value) and getattr(value, "__doc__", None):
            yield f"{prefix}.{name}", _document(value, name)


def _main() -> None:
    """Print the documents as JSON lines, whatever the imported modules print."""
    with redirect_stdout(io.StringIO()):
        lines = [json.dumps(page) for page in _render()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    _main()

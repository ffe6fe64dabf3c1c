"""A corpus that every Python has: the documentation of its standard library, for the demo and for tests.

The documents are the output of `help()`: one for every module, class, function and method with a docstring, under its
qualified name (`os.path.join`), and the topics of the language reference (`topics.with`). They overlap as real corpora do:
the page of a module contains the pages of its classes, and related modules (`os.path`, `posixpath`, `ntpath`) have the same
text.

To render a module it must be imported, so this happens in a separate Python process, which imports only the standard
library. The text does not depend on the machine: sections with paths and values are left out, and memory addresses and the
folders of the installation are removed.
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

# `posixpath` is kept and repeats these, so that the leak scan has real leaks to find.
_HELD_OUT = ("ntpath", "os.path")
# One module in 32 in addition. This one of the 32 slices has modules of medium size (contextlib, threading).
_HELD_OUT_MODULUS, _HELD_OUT_REMAINDER = 32, 12
_TOPICS = "topics"
# Modules whose import opens a browser or a window or prints, tests, and modules that will be removed from Python.
_SKIPPED = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "distutils", "pydoc_data"}
_SKIPPED_ANYWHERE = {"test", "tests"}
# Sections with paths, values of this process (os.environ!), or the same sentences on every page.
_SECTION = re.compile(r"^(?=[A-Z][A-Z ]*$)", re.MULTILINE)
_CUT_SECTIONS = ("FILE\n", "DATA\n", "MODULE REFERENCE\n")
# Inherited methods are on the page of the base class. With them, all exceptions would have nearly the same text.
_INHERITED = re.compile(
    r"^( *\|)(?: +-{70}\n\1)? +[A-Z].* inherited from .*:\n(?:\1(?! +-{70}).*(?:\n|\Z))*", re.MULTILINE
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """The documents `(doc_id, text)` of the running Python, always equal and in the same order."""
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

    A module is held out with all its pages, so overlaps of the test set and the corpus come from two different modules.
    """
    if any(doc_id == name or doc_id.startswith(f"{name}.") for name in _HELD_OUT):
        return True
    top = doc_id if doc_id.startswith(f"{_TOPICS}.") else doc_id.partition(".")[0]
    return hashlib.sha256(top.encode()).digest()[0] % _HELD_OUT_MODULUS == _HELD_OUT_REMAINDER


def _render() -> Iterator[tuple[str, str]]:
    """The documents. Runs in a separate process, because it imports many modules and clears the environment."""
    folders = {sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix, os.path.expanduser("~"), os.getcwd()} - {"/"}
    inspect.getcomments = _no_comments
    os.environ.clear()  # it is the default value of some parameters, and defaults are printed
    # The longest first, because the library is inside the prefix.
    folder = re.compile("|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True)))
    seen: set[object] = set()
    for doc_id, text in _pages():
        page = folder.sub("...", _ADDRESS.sub("", _INHERITED.sub("", text))).strip()
        # A page that a module re-exports from its submodules is given once. Two modules may have equal pages.
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
    """A module and its submodules, without those that are private or cannot be imported here."""
    last = name.rpartition(".")[2]
    if last.startswith(("_", "xx")) or last in _SKIPPED_ANYWHERE or name in _SKIPPED:
        return
    try:
        module = importlib.import_module(name)
    except ImportError:  # of another platform, or left out when this Python was built
        return
    yield name, module
    for child in sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))):
        yield from _modules(f"{name}.{child}")


def _document(value: object, name: str | None = None) -> str:
    return pydoc.plain(pydoc.text.document(value, name))


# pydoc spends half its time on comments in the source, which are not documentation. `wraps`: inspect has a page, too.
@functools.wraps(inspect.getcomments)
def _no_comments(object: object) -> str | None:
    return None


def _module_page(module: ModuleType) -> str:
    sections = _SECTION.split(_document(module))
    return "".join(section for section in sections if not section.startswith(_CUT_SECTIONS))


def _members(prefix: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    """A page for every documented public class and function of a module, and for every method that a class defines."""
    public_names = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items()):
        is_public = name in public_names if public_names is not None else inspect.getmodule(value) is module
        if not is_public or name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
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
    """Print the documents as JSON arrays, one per line; output of the imported modules is dropped."""
    with redirect_stdout(io.StringIO()):
        lines = [json.dumps(page) for page in _render()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    _main()

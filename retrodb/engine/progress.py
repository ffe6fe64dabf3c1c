"""Progress on stderr: a bar with rate and time left on a terminal, plain lines otherwise, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from retrodb.printable import escape

_LINE_EVERY_S = 10.0


class Bar(Protocol):
    """The progress of one stage."""

    def advance(self, amount: int) -> None:
        """Some work ended, in the stage's unit."""
        ...

    def count(self, name: str, amount: int) -> None:
        """Count something that is not the unit of work, and show its rate; ignored without a name."""
        ...

    def note(self, text: str) -> None:
        """A line that stays."""
        ...

    def show(self, text: str) -> None:
        """A text next to the bar, until the next call."""
        ...


class Progress:
    """Shows nothing; base class of the progress displays."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Bar]:
        """Begin a stage with `total` units of work; it ends with the block."""
        yield _Silent()


class _Silent:
    def advance(self, amount: int) -> None:
        del amount

    def count(self, name: str, amount: int) -> None:
        del name, amount

    def note(self, text: str) -> None:
        del text

    def show(self, text: str) -> None:
        del text


class TerminalProgress(Progress):
    """A tqdm bar for every stage that takes longer than half a second."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Bar]:
        from tqdm import tqdm

        with tqdm(
            total=total, desc=name, unit=unit or "it", unit_scale=True, leave=False, delay=0.5, file=sys.stderr
        ) as bar:
            yield _TqdmBar(bar)


class _TqdmBar:
    def __init__(self, bar: object) -> None:
        self._bar, self._counted, self._started = bar, 0, time.monotonic()

    def advance(self, amount: int) -> None:
        self._bar.update(amount)  # type: ignore[attr-defined]

    def count(self, name: str, amount: int) -> None:
        if name:
            self._counted += amount
            rate = self._counted / max(time.monotonic() - self._started, 1e-3)
            self._bar.set_postfix_str(f"{rate:,.0f} {name}/s")  # type: ignore[attr-defined]

    def note(self, text: str) -> None:
        self._bar.write(escape(text), file=sys.stderr)  # type: ignore[attr-defined]

    def show(self, text: str) -> None:
        self._bar.set_postfix_str(escape(text), refresh=False)  # type: ignore[attr-defined]


class LineProgress(Progress):
    """A plain line now and then, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Bar]:
        yield _Lines(self._stream, name, total, unit)


class _Lines:
    def __init__(self, stream: TextIO, name: str, total: int, unit: str) -> None:
        self._stream, self._name, self._total = stream, name, total
        self._scale, self._unit = (1e6, "MB") if unit == "B" else (1.0, unit)
        self._done, self._counted, self._started = 0, 0, time.monotonic()
        self._counts = ""
        self._next = self._started + _LINE_EVERY_S

    def advance(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LINE_EVERY_S
        rate = self._done / (now - self._started)
        left = f"{(self._total - self._done) / rate:,.0f} s left" if rate and self._total else ""
        done, total, rate = (amount / self._scale for amount in (self._done, self._total, rate))
        rates = f"{rate:,.{0 if self._scale == 1 else 1}f} {self._unit}/s{self._counts}".replace(" /s", "/s")
        self.note(f"{self._name}: {done:,.0f} of {total:,.0f} {self._unit} ({rates}) {left}".rstrip())

    def count(self, name: str, amount: int) -> None:
        if name:
            self._counted += amount
            rate = self._counted / max(time.monotonic() - self._started, 1e-3)
            self._counts = f", {rate:,.0f} {name}/s"

    def note(self, text: str) -> None:
        print(escape(text), file=self._stream, flush=True)

    def show(self, text: str) -> None:
        self._counts = f", {text}"


def make_progress(enabled: bool | None = None) -> Progress:
    """The progress for standard error: True and False force it, None looks whether it is a terminal."""
    if enabled is False:
        return Progress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()

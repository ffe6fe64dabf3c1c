"""The export formats by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retrodb.export.arrays import arrays_files
from retrodb.export.atlas import atlas_files
from retrodb.export.dpr import dpr_files
from retrodb.export.export_file import ExportFile
from retrodb.export.export_source import ExportSource
from retrodb.export.huggingface import huggingface_files, huggingface_index
from retrodb.export.lucidrains import lucidrains_files
from retrodb.export.megatron import megatron_files, megatron_scratch
from retrodb.export.nemo import nemo_files
from retrodb.export.norlund import norlund_files
from retrodb.export.parquet import parquet_files
from retrodb.export.tables import named_files


@dataclass(frozen=True)
class ExportFormat:
    """The format of one trainer. Describing its files costs records of files, never chunks or rows.

    Attributes:
        files: describes the files, and refuses what the format cannot hold.
        scratch: files that the others are written from; they are deleted in the end.
        index: small files that name the others, from the digest of the inputs of each.
    """

    files: Callable[[ExportSource], list[ExportFile]]
    scratch: Callable[[ExportSource], list[ExportFile]] = lambda _: []
    index: Callable[[Mapping[str, str]], list[ExportFile]] = lambda _: []
    has_positions: bool = True  # whether its reader finds chunks by position, so that positions must never change
    has_subsets: bool = False  # whether one export can hold a table for each of `SUBSETS`


FORMATS: dict[str, ExportFormat] = {
    "parquet": ExportFormat(parquet_files, named_files, has_positions=False),
    "huggingface": ExportFormat(huggingface_files, named_files, huggingface_index, has_positions=False),
    "arrays": ExportFormat(arrays_files),
    "megatron": ExportFormat(megatron_files, megatron_scratch, has_subsets=True),
    "lucidrains": ExportFormat(lucidrains_files),
    "norlund": ExportFormat(norlund_files),
    "nemo": ExportFormat(nemo_files),
    "dpr": ExportFormat(dpr_files, has_positions=False),
    "atlas": ExportFormat(atlas_files),
}

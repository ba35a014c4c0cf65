"""Rows with their fields: the one way to read a table, for the readers, the evaluation tasks and files of answers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from care_jax.data.rows.fields import BadField, FieldFinder
from care_jax.data.rows.files import open_rows
from care_jax.data.rows.report import Report
from care_jax.data.rows.row import Row
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, the finder of their fields, and the report that counts the rows and lists those that are dropped.

    Iterating yields (row, field -> value) of each readable row. A strict report (the default) raises `UserError` for
    the first row that cannot be used.
    """

    rows: Iterable[Row]
    finder: FieldFinder
    report: Report = field(default_factory=lambda: Report(strict=True))

    def __iter__(self) -> Iterator[tuple[Row, JsonObject]]:
        for row in self.rows:
            self.report.count(row)
            if row.value is None:
                self.report.drop(row, "unreadable", "", row.problem)
            else:
                yield row, self.finder.of(row.value)

    def parse(self, parse_row: Callable[[Row, JsonObject], T]) -> Iterator[T]:
        """Yields `parse_row(row, values)` of each readable row; a row for which it raises `BadField` is dropped."""
        for row, values in self:
            try:
                parsed = parse_row(row, values)
            except BadField as bad:
                self.drop(row, bad)
            else:
                yield parsed

    def for_each(self, visit: Callable[[Row, JsonObject], None]) -> None:
        """Calls `visit(row, values)` for each readable row; a row for which it raises `BadField` is dropped."""
        for _ in self.parse(visit):
            pass

    def drop(self, row: Row, bad: BadField) -> None:
        """Counts and lists a row that has a field which cannot be used."""
        self.report.drop(row, bad.reason, bad.field, bad.value)


def open_table(
    path: str,
    aliases: Mapping[str, tuple[str, ...]],
    columns: Mapping[str, str | None] | None = None,
    report: Report | None = None,
) -> Table:
    """Opens a file, a folder or a hub id as a table.

    aliases: field -> the names that its column may have. columns: the user's map, field -> column. report: None raises
    `UserError` for the first row that cannot be used.
    """
    return Table(open_rows(path), FieldFinder.make(aliases, columns), report or Report(strict=True))


def require_fields(row: Row, values: Mapping[str, object], *names: str) -> None:
    """Raises `UserError` if the row lacks one of these fields; names its columns."""
    missing = [name for name in names if name not in values]
    if missing:
        columns = ", ".join(map(str, row.value or ()))
        raise UserError(f"{row.place}: no {', '.join(missing)}; its columns are {columns} (name them by --columns)")

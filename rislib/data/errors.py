"""What the readers raise, and nothing else: every fault in the data names its place."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class DataError(Exception):
    """Something is wrong with the data. The message reads "file: record: field: problem".

    Attributes:
        problem: what is wrong, in words.
        file: path of the file, relative to the data's root.
        record: which record of it, such as "annotation 17".
        field: which field of the record.
    """

    def __init__(
        self, problem: str, file: str | None = None, record: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(problem, file, record, field)
        self.problem, self.file, self.record, self.field = problem, file, record, field

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.record, self.field, self.problem) if part)


class UnsafePickle(DataError):
    """A pickle holds more than plain data. It may come from someone who means harm."""


Fault = Callable[[DataError], None]


def raise_fault(error: DataError) -> None:
    """The strict way to deal with a fault."""
    raise error


class locating:
    """`with locating(file, record):` a DataError raised inside learns its place, then goes to `on_fault`.

    A class, since a generator's context manager is too slow to stand around each of 200,000 records.
    """

    __slots__ = ("file", "on_fault", "record")

    def __init__(self, file: str, record: str | None = None, on_fault: Fault = raise_fault) -> None:
        self.file, self.record, self.on_fault = file, record, on_fault

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, DataError):
            return False
        located = type(error)(
            error.problem, error.file or self.file, error.record or self.record, error.field
        )
        located.__cause__ = error.__cause__
        self.on_fault(located)
        return True

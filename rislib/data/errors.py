"""What the readers raise, and nothing else: every fault in the data names its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


@contextmanager
def locating(file: str, record: str | None = None, on_fault: Fault = raise_fault) -> Iterator[None]:
    """A DataError raised inside learns its file and record, then goes to `on_fault`."""
    try:
        yield
    except DataError as error:
        on_fault(type(error)(error.problem, error.file or file, error.record or record, error.field))

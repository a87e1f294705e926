"""Reading the benchmarks' pickles without trusting them.

A pickle is a program: it can call any function, and a few bytes of it can fill the memory. RefCOCO's
`refs(...).p` need none of that. `load_pickle` first walks over the instructions without running them and
refuses all that plain data does not need; only then does it unpickle.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from rislib.data.errors import DataError, UnsafePickle

# Tuples and sets are left out on purpose: a few dozen nested ones as a dictionary's key take forever to hash.
ALLOWED = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    """.split()  # noqa: SIM905
)

# Of each allowed instruction: how many bytes its argument has, or a negative constant of pickletools that
# says where its length stands.
_ARGUMENT = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes if op.name in ALLOWED}
_PREFIX = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_STOP, _PUT, _LONG_BINPUT = b".pr"


def load_pickle(path: Path, name: str | None = None) -> Any:
    """The plain data in a pickle: dictionaries, lists, strings, bytes, numbers, booleans and None.

    Byte strings of Python 2 become text, as UTF-8 or else Latin-1. `name` stands for the file in errors.

    Raises:
        UnsafePickle: if it holds anything else (tuples and sets included).
        DataError: if it cannot be read.
    """
    name = name or str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "cannot be read", file=name) from error
    _check_instructions(data, name)
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except DataError:
        raise
    except Exception as error:  # broken pickles raise nearly everything
        raise DataError(f"not a readable pickle ({type(error).__name__})", file=name) from error


class _PlainUnpickler(pickle.Unpickler):
    """The second lock: should an instruction slip through, it still finds nothing to call."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise UnsafePickle("asks for a class or a function")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickle("asks for an object outside the pickle")


def _check_instructions(data: bytes, name: str) -> None:
    """Walks over the instructions, running none.

    Raises:
        UnsafePickle: at one that is not allowed, or a memo index that would fill the memory.
        DataError: if one reaches beyond the file's end, or the last one is missing.
    """
    start, end = 0, len(data)  # of the instruction; of the file
    while start < end:
        opcode = data[start]
        length = _ARGUMENT.get(opcode)
        if length is None:
            problem = f"instruction {chr(opcode)!r} at byte {start} is more than plain data"
            raise UnsafePickle(problem, file=name)
        if opcode == _STOP:
            return
        argument = start + 1
        if length >= 0:
            start = argument + length
        elif length == pickletools.UP_TO_NEWLINE:
            start = data.find(b"\n", argument) + 1 or end + 1
        else:
            text = argument + _PREFIX[length]
            start = text + int.from_bytes(data[argument:text], "little")
        if opcode in (_LONG_BINPUT, _PUT):
            _check_memo_index(data[argument:start], opcode, end, name)
    raise DataError("the pickle breaks off", file=name)


def _check_memo_index(argument: bytes, opcode: int, largest: int, name: str) -> None:
    """The memo is an array up to its largest index; an honest file never counts beyond its own length."""
    if opcode == _LONG_BINPUT:
        index = int.from_bytes(argument, "little")
    else:
        digits = argument.strip()
        index = int(digits) if digits.isdigit() and len(digits) < 20 else largest + 1
    if index > largest:
        raise UnsafePickle(f"memo index {argument!r} is out of all proportion", file=name)

"""Reading the benchmarks' pickles without trusting them.

A pickle is a program: it can call any function, and a few bytes of it can fill the memory. RefCOCO's
`refs(...).p` need none of that. `load_pickle` first walks over the instructions without running them and
refuses all that plain data does not need; only then does it unpickle.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
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

LARGEST_MEMO = 2**24  # the memo is an array as long as its largest index; RefCOCO's has a million entries

_ARGUMENT = {
    op.code.encode("latin-1"): op.arg.n if op.arg else 0 for op in pickletools.opcodes if op.name in ALLOWED
}


def _with_argument(length: int) -> bytes:
    """The allowed instructions whose argument has this length, as a regular expression's character class."""
    codes = b"".join(code for code, n in _ARGUMENT.items() if n == length and code not in (b".", b"r"))
    return b"[" + re.escape(codes) + b"]"


# A run of instructions of known length: most of a file, too much of it for a loop in Python. LONG_BINPUT
# ("r") only with an index below LARGEST_MEMO, that is with a highest byte of 0. "*+" keeps no way back,
# which would take more memory than the file.
_RUN = re.compile(
    b"(?:%s|%s.|%s..|%s.{4}|%s.{8}|r...\\x00)*+" % tuple(_with_argument(n) for n in (0, 1, 2, 4, 8)),
    re.DOTALL,
)
_PREFIX = {  # bytes that hold an argument's length, in front of it
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


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
    start, end = 0, len(data)
    while (start := _RUN.match(data, min(start, end)).end()) < end:
        code, argument = data[start : start + 1], start + 1
        length = _ARGUMENT.get(code)
        if code == b".":
            return
        if length is None:
            raise UnsafePickle(f"instruction {code!r} at byte {start} is more than plain data", file=name)
        if length >= 0:  # why did the run not take it? Its index is too large, or its argument breaks off
            if code == b"r" and argument + length <= end:
                raise UnsafePickle(f"memo index at byte {argument} is out of all proportion", file=name)
            break
        if length == pickletools.UP_TO_NEWLINE:
            start = data.find(b"\n", argument) + 1 or end
            if code == b"p" and not _is_memo_index(data[argument:start]):
                raise UnsafePickle(f"memo index at byte {argument} is out of all proportion", file=name)
        else:
            text = argument + _PREFIX[length]
            start = text + int.from_bytes(data[argument:text], "little")
    raise DataError("the pickle breaks off", file=name)


def _is_memo_index(line: bytes) -> bool:
    digits = line.strip()
    return digits.isdigit() and len(digits) < 10 and int(digits) < LARGEST_MEMO

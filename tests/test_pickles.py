"""Pickles: plain data comes through, everything else is refused before it can do anything."""

from __future__ import annotations

import collections
import contextlib
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rislib.data.errors import DataError, UnsafePickle
from rislib.data.pickles import load_pickle

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "refs(me).p"


def load_bytes(file: Path, data: bytes) -> object:
    file.write_bytes(data)
    return load_pickle(file, "toy/refs(me).p")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=PLAIN, protocol=st.sampled_from([3, 4, 5]))
def test_plain_data_comes_through(file: Path, value: object, protocol: int) -> None:
    assert load_bytes(file, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_many_memo_entries_in_old_protocols(file: Path, protocol: int) -> None:
    value = [{"sent": f"man number {i}", "sent_id": i, "area": i / 3, "raw": None} for i in range(2000)]
    assert load_bytes(file, pickle.dumps(value, protocol)) == value


def test_byte_strings_of_python_2_become_text(file: Path) -> None:
    utf8, latin1 = "café".encode(), "café".encode("latin-1")
    assert load_bytes(file, b"\x80\x02U" + bytes([len(utf8)]) + utf8 + b".") == "café"
    assert load_bytes(file, b"\x80\x02U" + bytes([len(latin1)]) + latin1 + b".") == "café"
    assert load_bytes(file, b"(dp0\nS'sent'\np1\nS'a man'\np2\ns.") == {"sent": "a man"}


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(file: Path, tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(UnsafePickle, match=r"toy/refs\(me\)\.p"):
        load_bytes(file, pickle.dumps([1, Harmful(trace)], protocol))
    assert not trace.exists()


@pytest.mark.parametrize(
    "value", [collections.OrderedDict(a=1), (1, 2), {1, 2}, frozenset(), len, DataError, bytearray(b"a"), 1j]
)
def test_only_plain_types(file: Path, value: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(UnsafePickle, match="more than plain data"):
            load_bytes(file, pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
        b"Nr" + struct.pack("<I", 2**29) + b".",
        b"Np4000000000\n.",
        b"Np" + b"9" * 10_000 + b"\n.",
        b"\x80\x02Pid\n.",
        b"\x80\x02NQ.",
        b"\x82\x01.",
    ],
)
def test_memory_and_persistent_ids_are_guarded(file: Path, data: bytes) -> None:
    with pytest.raises(UnsafePickle):
        load_bytes(file, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"N",
        b".",
        b"(((",
        b"]" * 1000,
        b"X\xff\xff\xff\xff.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x8e\x00\x00\x00\x00\x00\x00\x00\x7f.",
        b"h\x05.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"]]Ns.",
        b"}]Ns.",
        b"S'abc\n.",
        b"Nr\x01",
        b"not a pickle at all",
        pickle.dumps([{"a": "some longer text"}] * 5)[:-4],
    ],
)
def test_broken_pickles(file: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"toy/refs\(me\)\.p"):
        load_bytes(file, data)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_pickle(tmp_path / "none.p")


def test_deep_and_circular_data_ends(file: Path) -> None:
    deep = b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(load_bytes(file, deep), list)
    circle = load_bytes(file, b"]q\x00h\x00a.")
    assert circle[0] is circle


@settings(max_examples=300, deadline=10_000, derandomize=True)
@given(data=st.binary(max_size=200), tail=st.sampled_from([b"", b"."]))
def test_random_bytes(file: Path, data: bytes, tail: bytes) -> None:
    with contextlib.suppress(DataError):
        load_bytes(file, data + tail)


@settings(max_examples=300, deadline=10_000, derandomize=True)
@given(data=st.data(), protocol=st.sampled_from([0, 2, 4]))
def test_damaged_pickles(file: Path, data: st.DataObject, protocol: int) -> None:
    """A changed byte in honest data is the likeliest way to an instruction that is not."""
    content = bytearray(pickle.dumps([{"sent_id": 7, "sent": "red car", "tokens": ["red", "car"]}], protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        load_bytes(file, bytes(content))

"""The cache of resized pictures: the same batches, whatever happens to whoever makes it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shared import rislib
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from rislib.cli import app
from rislib.data import DataError, RefDataset, cache, cached, import_own, open_split
from rislib.methods import BUILDERS, build
from rislib.nouns import Batch, Preprocessing
from rislib.training import CRIS_2022
from rislib.training.order import Batches

STRETCH = Preprocessing(size=32, resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LETTERBOX = Preprocessing(size=32, resize="letterbox", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
SIZES = [(64, 48), (40, 90), (33, 33), (32, 32), (500, 20), (300, 400), (24, 16)]  # width, height


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise as JPEG and PNG, colour and grey, larger and smaller than the network's input."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    rows = []
    for i, (width, height) in enumerate(SIZES):
        grey = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        colours = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        name = f"{i}.{'png' if i % 3 == 0 else 'jpg'}"
        (grey if i == 1 else colours).save(folder / name)
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2, : width // 3] = 255
        Image.fromarray(mask).save(folder / f"{i}_mask.png")
        rows += [[name, f"{words} {i}", f"{i}_mask.png"] for words in ("noise", "the corner")]
    with (folder / "expressions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "expression", "mask"], *rows])
    return import_own(folder, tmp_path_factory.mktemp("imported") / "data")


@pytest.fixture
def samples(original: Path, tmp_path: Path) -> RefDataset:
    return open_split(shutil.copytree(original, tmp_path / "data"), None)


def tokenize(expressions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([[len(words), 1] for words in expressions])
    return tokens, tokens != 0


def batches(samples: RefDataset, preprocessing: Preprocessing, workers: int = 0) -> list[Batch]:
    method = SimpleNamespace(preprocessing=preprocessing, tokenize=tokenize)
    source = Batches(samples, method, replace(CRIS_2022, batch_size=4), seed=0)
    loader = DataLoader(source, batch_size=None, sampler=range(5), num_workers=workers)
    return [batch for step in loader for batch in step]


def equal(these: list[Batch], those: list[Batch]) -> bool:
    fields = ("image", "mask", "tokens", "token_mask")
    pairs = [(getattr(a, f), getattr(b, f)) for a, b in zip(these, those, strict=True) for f in fields]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def preprocessings() -> Iterator[Preprocessing]:
    """Those of all networks there are."""
    for method, preset in BUILDERS:
        with torch.device("meta"):
            yield build(method, preset, pretrained=False).preprocessing


@pytest.mark.parametrize("preprocessing", sorted({*preprocessings(), LETTERBOX, STRETCH}, key=str), ids=str)
def test_batches_are_the_same_bit_for_bit(
    samples: RefDataset, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    kept = cached(samples, preprocessing, tmp_path / "cache")
    assert equal(batches(kept, preprocessing), batches(samples, preprocessing))
    again = cached(samples, preprocessing, tmp_path / "cache")
    assert equal(batches(again, preprocessing), batches(kept, preprocessing))
    assert kept.cache.broken() == []


def test_it_is_made_once_and_nothing_is_decoded_afterwards(
    samples: RefDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = [record for record in samples.records if record.image_id <= 3]
    made = watch(monkeypatch)
    cached(samples._with_records(half), LETTERBOX, tmp_path / "cache")
    assert len(made) == 3
    kept = cached(samples, LETTERBOX, tmp_path / "cache")
    assert len(made) == len(set(made)) == len(SIZES)
    expected = batches(samples, LETTERBOX)
    for picture in kept.pictures.values():
        picture.path.unlink()  # whoever needs the room may delete them
    assert equal(batches(cached(samples, LETTERBOX, tmp_path / "cache"), LETTERBOX), expected)
    assert len(made) == len(SIZES)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of pictures that are resized for the cache from now on."""
    made, resized = [], cache._resized

    def noted(picture, preprocessing):
        made.append(picture.name)
        return resized(picture, preprocessing)

    monkeypatch.setattr(cache, "_resized", noted)
    return made


# --- interrupted, and several at once -----------------------------------------------------------


def child(work: Callable[[], None]) -> int:
    """Does the work in a process of its own; how that ended, as `os.waitstatus_to_exitcode` has it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("share", [0, 0.4, 1])
@pytest.mark.parametrize("number", range(1 + 2 * 4))  # the first line; then pixels and lines of four blocks
def test_killed_at_any_write_it_goes_on_where_it_was(
    samples: RefDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, share: float
) -> None:
    monkeypatch.setattr(cache, "BLOCK", 2)
    cached(samples, STRETCH, tmp_path / "whole")
    write, writes = cache._write, []

    def last_write(file, content):
        if len(writes) == number:
            write(file, content[: int(share * len(content))])
            os.kill(os.getpid(), signal.SIGKILL)
        writes.append(file)
        write(file, content)

    def killed() -> None:
        monkeypatch.setattr(cache, "_write", last_write)
        cached(samples, STRETCH, tmp_path / "cache")

    assert child(killed) == -signal.SIGKILL
    there = cache.read_cache(tmp_path / "cache", cache.settings_of(STRETCH))
    assert there.broken() == []  # what the index promises is there, before anybody mends anything
    whole_blocks = max(0, number - 1 + (share == 1)) // 2
    assert len(there.entries) >= min(2 * whole_blocks, len(SIZES))

    made = watch(monkeypatch)
    kept = cached(samples, STRETCH, tmp_path / "cache")
    assert len(made) == len(SIZES) - len(there.entries)
    for name in (cache.INDEX, cache.PICTURES):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert equal(batches(kept, STRETCH), batches(samples, STRETCH))


def test_two_that_make_it_at_once_make_it_once(samples: RefDataset, tmp_path: Path) -> None:
    pids = []
    for _ in range(3):
        pids.append(os.fork())
        if pids[-1] == 0:
            status = 1
            try:
                cached(samples, STRETCH, tmp_path / "cache")
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert len(cached(samples, STRETCH, tmp_path / "cache").cache.entries) == len(SIZES)
    assert (tmp_path / "cache" / cache.PICTURES).stat().st_size == len(SIZES) * 3 * 32 * 32


def test_workers_share_it(samples: RefDataset, tmp_path: Path) -> None:
    kept, expected = cached(samples, LETTERBOX, tmp_path / "cache"), batches(samples, LETTERBOX)
    assert equal(batches(kept, LETTERBOX, workers=2), expected)
    sent = pickle.dumps(kept)  # as where workers are spawned: the index, not the pixels
    assert len(pickle.dumps(kept.cache)) < (tmp_path / "cache" / cache.PICTURES).stat().st_size / 5
    assert equal(batches(pickle.loads(sent), LETTERBOX), expected)


# --- what does not fit --------------------------------------------------------------------------


def test_another_preprocessing_is_refused(samples: RefDataset, tmp_path: Path) -> None:
    kept = cached(samples, LETTERBOX, tmp_path / "cache")
    others = [
        STRETCH,
        replace(LETTERBOX, size=48),
        replace(LETTERBOX, resize="stretch"),
        replace(LETTERBOX, mean=(0.5, 0.46, 0.41)),  # another border
    ]
    for other in others:
        with pytest.raises(DataError, match="name another folder"):
            cached(samples, other, tmp_path / "cache")
        with pytest.raises(ValueError, match="another network"):
            batches(kept, other)
    same = replace(LETTERBOX, std=(1.0, 1.0, 1.0))  # is applied when a batch is made
    assert equal(batches(cached(samples, same, tmp_path / "cache"), same), batches(samples, same))


def test_a_changed_picture_is_noticed_and_a_copied_one_is_not(samples: RefDataset, tmp_path: Path) -> None:
    cached(samples, STRETCH, tmp_path / "cache")
    picture = next(iter(samples.pictures.values()))
    os.utime(picture.path, (1, 1))
    cached(samples, STRETCH, tmp_path / "cache")
    content = picture.path.read_bytes()
    for changed in (content + b"!", content[:-1] + bytes([content[-1] ^ 1])):  # another size; the same
        picture.path.write_bytes(changed)
        with pytest.raises(DataError, match=r"data/0.*has changed.*delete that folder"):
            cached(samples, STRETCH, tmp_path / "cache")


def test_damage_is_said(samples: RefDataset, tmp_path: Path) -> None:
    cached(samples, STRETCH, tmp_path / "cache")
    pictures, index = tmp_path / "cache" / cache.PICTURES, tmp_path / "cache" / cache.INDEX
    content = bytearray(pictures.read_bytes())
    content[2 * 3 * 32 * 32 + 5] ^= 1
    pictures.write_bytes(content)
    kept = cached(samples, STRETCH, tmp_path / "cache").cache
    assert kept.broken() == [kept.entries[2].name]
    pictures.write_bytes(content[:-1])
    with pytest.raises(DataError, match="lacks pixels: delete this folder"):
        cached(samples, STRETCH, tmp_path / "cache")
    pictures.unlink()
    with pytest.raises(DataError, match="lacks pixels: delete this folder"):
        cached(samples, STRETCH, tmp_path / "cache")
    for line in (b"{}\n", b"[\n", b"\xff\n", b"7\n"):
        index.write_bytes(index.read_bytes().split(b"\n")[0] + b"\n" + line)
        with pytest.raises(DataError, match="damaged: delete this folder"):
            cached(samples, STRETCH, tmp_path / "cache")


def test_a_broken_picture_is_named_and_what_was_made_stays(
    samples: RefDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BLOCK", 2)
    picture = samples.pictures[4].path
    content = picture.read_bytes()
    picture.write_bytes(content[:20])
    with pytest.raises(DataError, match=f"{picture.name}: not a readable picture"):
        cached(samples, STRETCH, tmp_path / "cache")
    picture.write_bytes(content)
    made = watch(monkeypatch)
    cached(samples, STRETCH, tmp_path / "cache")
    assert len(made) == len(SIZES) - 2


def test_a_full_disk_is_seen_before(
    samples: RefDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(SIZES) * 3 * 32 * 32
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=size - 1))
    with pytest.raises(DataError, match=f"7 pictures take {size:,} bytes, and {size - 1:,} are free"):
        cached(samples, STRETCH, tmp_path / "cache")
    assert not (tmp_path / "cache" / cache.PICTURES).exists()


# --- by the command line ------------------------------------------------------------------------


def test_a_training_is_the_same(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    training = ("train", "cris", "--data", world, "--samples", 48, "--out")
    rislib(*training, tmp_path / "without")
    rislib(*training, tmp_path / "with", "--cache", folder)
    without, kept = (load_file(tmp_path / run / "model.safetensors") for run in ("without", "with"))
    assert all(torch.equal(kept[name], without[name]) for name in without)
    assert "cache" not in json.loads((tmp_path / "with" / "run.json").read_text())  # no part of what a run is

    main = ["data", "cache", str(world), "--out", str(folder), "--method", "cris"]
    assert f"{folder}: 20 pictures of 96 px, letterbox" in rislib(*main, "--check")
    assert "name another folder" in str(CliRunner().invoke(app, [*main[:-1], "lavt"]).exception)
    with (folder / cache.PICTURES).open("r+b") as file:
        file.write(b"?")
    assert "are damaged" in rislib(*main, "--check", code=1)

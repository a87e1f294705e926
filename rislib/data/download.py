"""Getting RefCOCO and its pictures: one table of addresses, and a download that goes on where it broke off.

    refcoco.zip, refcoco+.zip, refcocog.zip    instances.json and refs(...).p, as their authors released them
    train2014.zip                              the pictures, COCO's train2014 of 2014

The authors' own host (bvisionweb1.cs.unc.edu) fell silent in September 2022 (github.com/lichengunc/refer,
issue 14). The Internet Archive keeps their files; `id_` in an address asks it for a file as it was.

Nothing is believed on the way: an archive has its published size and SHA-256, or is refused; and what is
unpacked stays inside the data folder, whatever the names in the archive say.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from rislib.data.errors import DataError, locating
from rislib.data.index import picture_folder

BLOCK = 2**20  # bytes read at a time
TIMEOUT = 60  # seconds of silence after which a connection is given up
BROKEN_OFF = (
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    http.client.HTTPException,
)
NUMBER_OF_PICTURES = 82_783


@dataclass(frozen=True, slots=True)
class Archive:
    """Where an archive is, how to know it, and where it belongs."""

    address: str
    size: int  # bytes
    sha256: str
    file: str  # the archive's own name, in the data folder
    into: str  # folder, relative to the data folder, in which it is unpacked
    files: tuple[str, ...] = ()  # what must be there afterwards, relative to `into`


_UNC = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"

ARCHIVES = {
    # Addresses: github.com/lichengunc/refer, issues 14, 22 and 26; with `id_` in several public repositories.
    # Sizes and SHA-256: github.com/TarunTomar122/attention-is-all-you-need-for-vlms, docs/datasets.md. Other,
    # unrelated repositories give the same SHA-256.
    "refcoco": Archive(
        address=f"https://web.archive.org/web/20220413011718id_/{_UNC}/refcoco.zip",
        size=53_993_993,
        sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
        file="refcoco.zip",
        into="",
        files=("refcoco/instances.json", "refcoco/refs(unc).p", "refcoco/refs(google).p"),
    ),
    "refcoco+": Archive(
        address=f"https://web.archive.org/web/20220413011656id_/{_UNC}/refcoco+.zip",
        size=45_613_210,
        sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
        file="refcoco+.zip",
        into="",
        files=("refcoco+/instances.json", "refcoco+/refs(unc).p"),
    ),
    "refcocog": Archive(
        address=f"https://web.archive.org/web/20220413012904id_/{_UNC}/refcocog.zip",
        size=56_712_951,
        sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
        file="refcocog.zip",
        into="",
        files=("refcocog/instances.json", "refcocog/refs(umd).p", "refcocog/refs(google).p"),
    ),
    # Address: cocodataset.org, "2014 Train images". SHA-256: torchvision's prototype of its COCO dataset.
    "train2014": Archive(
        address="http://images.cocodataset.org/zips/train2014.zip",
        size=13_510_573_713,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        file="train2014.zip",
        into="images",
    ),
}


class DownloadError(DataError):
    """A file cannot be had, or is not the one that was meant."""


class UnsafeArchive(DataError):
    """An archive would write outside its folder, or holds more than files and folders."""


def get(name: str, root: str | Path, *, progress: bool = False) -> str:
    """Brings one of `ARCHIVES` to the data folder `root`, as far as it is not there yet.

    What is there already is used: the unpacked files, or the archive itself, put there by hand. The archive
    is kept; it may be deleted afterwards.

    Returns:
        What was done, in words.

    Raises:
        DownloadError: `name` is unknown, or the archive cannot be had whole; what has come so far is kept,
            and the next call goes on from there.
        UnsafeArchive: see `unpack`.
    """
    if name not in ARCHIVES:
        raise DownloadError(f"nothing is known as {name!r}, only {', '.join(ARCHIVES)}")
    archive, root = ARCHIVES[name], Path(root)
    if _is_complete(archive, root):
        return f"{name}: already in {root}"
    root.mkdir(parents=True, exist_ok=True)
    file = root / archive.file
    if file.exists():
        with locating(archive.file):
            check(file, archive.size, archive.sha256, progress=progress)
    else:
        download(archive.address, file, size=archive.size, sha256=archive.sha256, progress=progress)
    unpack(file, root / archive.into, progress=progress)
    if not _is_complete(archive, root):
        raise DownloadError("unpacked, but does not hold what it should", file=archive.file)
    return f"{name}: in {root}; {file} may be deleted"


def _is_complete(archive: Archive, root: Path) -> bool:
    if archive.files:
        return all((root / archive.into / file).exists() for file in archive.files)
    pictures = picture_folder(root, "train2014").glob("COCO_train2014_*.jpg")
    return sum(1 for _ in pictures) == NUMBER_OF_PICTURES


# --- downloading ------------------------------------------------------------------------------


def download(
    address: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    progress: bool = False,
) -> None:
    """Fetches `address` over HTTP to the file `target`, going on where an earlier attempt broke off.

    What has come so far lies in `<target>.part`; `target` appears only when it is whole and checked.

    Args:
        size: in bytes, if known. sha256: in hexadecimal digits, if known.
        attempts: how often to connect, counted anew from each time that brought something.
        pause: seconds to wait after the first of them, twice as long after the second, and so on.

    Raises:
        DownloadError: the server has no such file, breaks off again and again, or sends something else.
    """
    part = target.with_name(target.name + ".part")
    with (
        locating(target.name),
        tqdm(desc=target.name, total=size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        farthest = failures = 0
        while size is None or _bytes(part) < size:
            try:
                if _receive(address, part, size, bar):
                    break
                problem = f"the server breaks off after {_bytes(part):,} bytes"
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}"
                if error.code == 416:  # what we have is not a beginning of what the server has
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code != 429:
                    raise DownloadError(f"{problem} ({address})") from error
            except BROKEN_OFF as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            failures = failures + 1 if _bytes(part) <= farthest else 1
            farthest = max(farthest, _bytes(part))
            if failures == attempts:
                raise DownloadError(f"{problem} ({address}); ask again, to go on from there")
            time.sleep(pause * failures)
        try:
            check(part, size, sha256, progress=progress)
        except DownloadError:
            part.unlink()
            raise
        part.replace(target)


def check(file: Path, size: int | None, sha256: str | None, *, progress: bool = False) -> None:
    """Raises DownloadError unless `file` has this size, in bytes, and this SHA-256; None: any."""
    found = file.stat().st_size
    if size is not None and found != size:
        raise DownloadError(f"{found:,} bytes instead of {size:,}")
    if sha256 is None:
        return
    digest = hashlib.sha256()
    bar = tqdm(desc=f"checking {file.name}", total=found, unit="B", unit_scale=True, disable=not progress)
    with file.open("rb") as stream, bar:
        while block := stream.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != sha256:
        raise DownloadError(f"another file than the one meant: SHA-256 is {digest.hexdigest()}")


def _receive(address: str, part: Path, size: int | None, bar: tqdm) -> bool:
    """Adds to `part` what the server sends; whether that was all of it."""
    start = _bytes(part)
    request = urllib.request.Request(address, headers={"User-Agent": "rislib"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status == 206:
            sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if sent is None or int(sent[1]) != start:
                raise DownloadError(f"the server sends another part than the one asked for ({address})")
        else:  # it knows no ranges: from the beginning
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise DownloadError(f"the server offers {total:,} bytes instead of {size:,} ({address})")
        _check_room(part.parent, (total or start) - start)
        bar.reset(total=total or size)
        bar.update(start)
        with part.open("ab" if start else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
                if size is not None and file.tell() > size:  # a stream without an end would fill the disk
                    break
    expected = size if total is None else total
    return expected is None or _bytes(part) >= expected


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DownloadError(f"needs {size:,} bytes on disk, but {free:,} are free")


# --- unpacking --------------------------------------------------------------------------------


def unpack(file: Path, into: Path, *, progress: bool = False) -> None:
    """Unpacks a zip or tar archive into the folder `into`; files that are already there stay as they are.

    Everything is unpacked beside its place first and then moved: a broken archive leaves nothing behind.

    Raises:
        UnsafeArchive: a name is absolute or leads out of the folder, or a member is a link or a device.
        DownloadError: the archive is broken, or the disk too small.
    """
    into.mkdir(parents=True, exist_ok=True)
    staging = into / f".{file.name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    with locating(file.name):
        try:
            if zipfile.is_zipfile(file):
                _unpack_zip(file, staging, progress)
            else:
                _unpack_tar(file, staging, progress)
            for unpacked in [path for path in staging.rglob("*") if path.is_file()]:
                target = into / unpacked.relative_to(staging)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    unpacked.replace(target)
        except (DataError, OSError):
            raise
        except Exception as error:  # broken archives raise nearly everything
            raise DownloadError(f"not a readable archive ({error})") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _unpack_zip(file: Path, staging: Path, progress: bool) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # The upper half of `external_attr` is Unix's file mode; 0 where the archive comes from elsewhere
        kinds = (stat.S_IFMT(member.external_attr >> 16) for member in members)
        plain = (kind in (0, stat.S_IFREG, stat.S_IFDIR) for kind in kinds)
        _check_names((member.filename for member in members), plain)
        _check_room(staging.parent, sum(member.file_size for member in members))
        for member in tqdm(members, f"unpacking {file.name}", disable=not progress):
            archive.extract(member, staging)  # compares the member's CRC, too


def _unpack_tar(file: Path, staging: Path, progress: bool) -> None:
    with tarfile.open(file) as archive:
        members = archive.getmembers()
        _check_names((member.name for member in members), (m.isfile() or m.isdir() for m in members))
        _check_room(staging.parent, sum(member.size for member in members))
        for member in tqdm(members, f"unpacking {file.name}", disable=not progress):
            archive.extract(member, staging, filter="data")


def _check_names(names: Iterable[str], plain: Iterable[bool]) -> None:
    """No links at all, not even harmless ones: by links, older Pythons' "data" filter can be led astray."""
    for name, is_plain in zip(names, plain, strict=True):
        if not is_plain:
            raise UnsafeArchive("neither a file nor a folder", record=repr(name))
        if not name or name.startswith("/") or re.search(r"[\\:\0]", name) or ".." in name.split("/"):
            raise UnsafeArchive("a name that leads out of the folder", record=repr(name))

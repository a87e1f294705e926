"""Downloads from a server that misbehaves in every known way, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rislib.cli import app
from rislib.data import DataError, download
from rislib.data.download import ARCHIVES, Archive, DownloadError, UnsafeArchive, get, unpack

CONTENT = bytes(i * i % 251 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """One file, and how it is served. `asked` are the ranges that came, "" where the whole was asked for."""

    content: bytes = CONTENT
    ranges: bool = True
    stops_after: list[int] = field(default_factory=list)  # bytes of one answer each; then answers are whole
    claims: int | None = None  # bytes that Content-Length is off by; -10**9: no such header
    starts_at: int = 0  # bytes by which a range starts too late
    statuses: list[int] = field(default_factory=list)  # errors to answer with first
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            state.asked.append(wanted)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            start = int(wanted[len("bytes=") : -1]) if wanted and state.ranges else 0
            total = len(state.content)
            if start >= total:
                self.send_error(416)
                return
            body = state.content[start:]
            if start:
                self.send_response(206)
                first = start + state.starts_at
                self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if state.claims != -(10**9):
                self.send_header("Content-Length", str(len(body) + (state.claims or 0)))
            self.end_headers()
            self.wfile.write(body[: state.stops_after.pop(0)] if state.stops_after else body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # who asks may hang up early
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.address = f"http://127.0.0.1:{http.server_port}/file"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.zip"


def fetch(server: Server, target: Path, **options) -> None:
    known = {"size": len(CONTENT), "sha256": SHA256}
    download.download(server.address, target, pause=0, **(known | options))


def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_whole_file(server: Server, target: Path) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT and not part(target).exists()
    assert server.asked == [""]


def test_goes_on_where_it_broke_off(server: Server, target: Path) -> None:
    server.stops_after = [70_000, 50_000, 1]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=70000-", "bytes=120000-", "bytes=120001-"]


def test_patience_lasts_as_long_as_something_comes(server: Server, target: Path) -> None:
    server.stops_after = [1_000] * 20
    fetch(server, target, attempts=2)
    assert target.read_bytes() == CONTENT and len(server.asked) == 21


def test_goes_on_in_another_run(server: Server, target: Path) -> None:
    server.stops_after = [70_000]
    with pytest.raises(
        DownloadError, match=r"file\.zip: the server breaks off after 70,000 bytes .*ask again"
    ):
        fetch(server, target, attempts=1)
    assert part(target).read_bytes() == CONTENT[:70_000] and not target.exists()
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=70000-"]


def test_a_whole_part_is_not_asked_for_again(server: Server, target: Path) -> None:
    part(target).write_bytes(CONTENT)
    fetch(server, target)
    assert target.read_bytes() == CONTENT and server.asked == []


def test_a_server_without_ranges_starts_again(server: Server, target: Path) -> None:
    server.ranges, server.stops_after = False, [70_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=70000-"]


def test_a_server_that_always_breaks_off_is_given_up(server: Server, target: Path) -> None:
    server.ranges, server.stops_after = False, [70_000] * 20
    with pytest.raises(DownloadError, match="breaks off after 70,000 bytes"):
        fetch(server, target, attempts=4)
    assert len(server.asked) == 4  # only the first brought something new


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_no_length_at_all(server: Server, target: Path, size: int | None) -> None:
    server.claims = -(10**9)
    fetch(server, target, size=size)
    assert target.read_bytes() == CONTENT


def test_without_a_length_what_is_missing_is_asked_for(server: Server, target: Path) -> None:
    server.claims, server.stops_after = -(10**9), [70_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT and server.asked == ["", "bytes=70000-"]


@pytest.mark.parametrize("claims", [1_000, -1_000])
def test_a_wrong_length_is_refused_before_anything_is_kept(server: Server, target: Path, claims: int) -> None:
    server.claims = claims
    with pytest.raises(DownloadError, match=f"offers {300_000 + claims:,} bytes instead of 300,000"):
        fetch(server, target)
    assert not target.exists() and not part(target).exists()


def test_a_length_too_large_of_a_file_of_unknown_size(server: Server, target: Path) -> None:
    server.claims = 1_000  # then its answer to the range that seems to be missing is 416, and so on
    with pytest.raises(DownloadError):
        fetch(server, target, size=None, sha256=None, attempts=3)
    assert not target.exists()


def test_a_length_too_small_is_found_by_the_checksum(server: Server, target: Path) -> None:
    server.claims = -1_000
    with pytest.raises(DownloadError, match="another file than the one meant"):
        fetch(server, target, size=None)
    assert not target.exists() and not part(target).exists()


def test_another_file_of_the_same_size(server: Server, target: Path) -> None:
    server.content = CONTENT[::-1]
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DownloadError, match=f"file.zip: another file than the one meant: SHA-256 is {found}"):
        fetch(server, target)
    assert not target.exists() and not part(target).exists()


def test_a_file_without_an_end_does_not_fill_the_disk(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BLOCK", 1_000)
    server.content, server.claims = CONTENT * 30, -(10**9)
    written = []
    monkeypatch.setattr(download, "check", lambda file, *_, **__: written.append(file.stat().st_size))
    fetch(server, target)
    assert written == [301_000]


def test_a_part_of_something_else(server: Server, target: Path) -> None:
    part(target).write_bytes(b"x" * 1_000)
    with pytest.raises(DownloadError, match="another file"):
        fetch(server, target)
    fetch(server, target)  # the false beginning is gone
    assert target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server: Server, target: Path) -> None:
    part(target).write_bytes(b"x" * 400_000)
    fetch(server, target, size=None)  # 416, then from the beginning
    assert target.read_bytes() == CONTENT and server.asked == ["bytes=400000-", ""]


def test_another_range_than_the_one_asked_for(server: Server, target: Path) -> None:
    part(target).write_bytes(CONTENT[:1_000])
    server.starts_at = 5
    with pytest.raises(DownloadError, match="another part than the one asked for"):
        fetch(server, target)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_there_is_not_asked_for_twice(server: Server, target: Path, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(DownloadError, match=rf"file\.zip: {status} .*http://127"):
        fetch(server, target)
    assert server.asked == [""]


def test_a_busy_server_is_asked_again(server: Server, target: Path) -> None:
    server.statuses = [503, 429]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_redirects_are_followed(server: Server, target: Path) -> None:
    server.address = server.address.replace("/file", "/moved")
    server.stops_after = [70_000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT and server.asked == ["", "bytes=70000-"]


def test_no_server_at_all(target: Path) -> None:
    with pytest.raises(DownloadError, match="refused"):
        download.download("http://127.0.0.1:9/file", target, attempts=2, pause=0)


def test_a_disk_too_small(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage(target.parent)._replace(free=1_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="needs 300,000 bytes on disk, but 1,000 are free"):
        fetch(server, target)
    assert not part(target).exists()


# --- unpacking --------------------------------------------------------------------------------


def zipped(file: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # the constructor would mend it
            info.external_attr = (modes or {}).get(name, 0) << 16
            archive.writestr(info, content)
    return file


def tarred(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


GOOD = {"refcoco/instances.json": b"{}", "refcoco/refs(unc).p": b"x" * 9_999}


def test_zip_and_tar_are_unpacked(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "a.zip", {"refcoco/": b"", **GOOD}), tmp_path / "zip")
    unpack(
        tarred(tmp_path / "a.tar.gz", *((member(name), content) for name, content in GOOD.items())),
        tmp_path / "tar",
    )
    assert everything(tmp_path / "zip") == everything(tmp_path / "tar") == GOOD


def test_what_is_there_stays(tmp_path: Path) -> None:
    mine = tmp_path / "out/refcoco/instances.json"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    unpack(zipped(tmp_path / "a.zip", GOOD), tmp_path / "out")
    assert everything(tmp_path / "out") == GOOD | {"refcoco/instances.json": b"mine"}


OUTSIDE = [
    "../evil",
    "refcoco/../../evil",
    "/evil",
    "//evil",
    "..\\evil",
    "C:\\evil",
    "C:/evil",
    "a\\..\\..\\evil",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_nothing_is_written_outside(tmp_path: Path, name: str, pack) -> None:
    out = tmp_path / "below/out"
    if pack is zipped:
        file = zipped(tmp_path / "a.zip", {**GOOD, name: b"evil"})
    else:
        file = tarred(tmp_path / "a.tgz", (member("good"), b"good"), (member(name), b"evil"))
    with pytest.raises(UnsafeArchive, match="leads out of the folder") as caught:
        unpack(file, out)
    assert file.name in str(caught.value) and repr(name) in str(caught.value)
    assert everything(tmp_path) == {file.name: file.read_bytes()}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("link", ["/etc", "..", "good"])
def test_no_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, link: str) -> None:
    file = tarred(tmp_path / "a.tgz", (member("good"), b"good"), (member("way", kind, link), b""))
    with pytest.raises(UnsafeArchive, match="'way': neither a file nor a folder"):
        unpack(file, tmp_path / "out")
    assert everything(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_no_links_and_devices_in_a_zip(tmp_path: Path, kind: int) -> None:
    file = zipped(tmp_path / "a.zip", {**GOOD, "way": b"/etc"}, {"way": kind | 0o777})
    with pytest.raises(UnsafeArchive, match="'way': neither a file nor a folder"):
        unpack(file, tmp_path / "out")
    assert everything(tmp_path / "out") == {}


def test_broken_archives_leave_nothing_behind(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", GOOD).read_bytes()
    at = whole.index(b"refs(unc).p") + len("refs(unc).p")
    broken = {
        "cut.zip": whole[:-30],
        "bit.zip": whole[: at + 5] + bytes([whole[at + 5] ^ 255]) + whole[at + 6 :],
        "cut.tgz": tarred(tmp_path / "whole.tgz", (member("a"), bytes(range(256)) * 99)).read_bytes()[:300],
        "page.zip": b"<html>Sorry</html>",
        "empty.zip": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DownloadError, match=f"{name}: not a readable archive"):
            unpack(tmp_path / name, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zipped(tmp_path / "a.zip", {"zeros": bytes(10**7)})  # 10 kB in the archive
    usage = download.shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="needs 10,000,000 bytes on disk"):
        unpack(file, tmp_path / "out")


# --- the table, and the command ---------------------------------------------------------------


@pytest.fixture
def toy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A table in which "refcoco" comes from the test's own server."""
    server.content = zipped(tmp_path / "served.zip", GOOD).read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    archive = Archive(server.address, len(server.content), sha256, "refcoco.zip", "", tuple(GOOD))
    monkeypatch.setitem(ARCHIVES, "refcoco", archive)
    return server


def test_get_downloads_unpacks_and_does_nothing_twice(toy: Server, tmp_path: Path) -> None:
    root = tmp_path / "data"
    result = CliRunner().invoke(app, ["data", "get", "refcoco", "--out", str(root)])
    assert result.exit_code == 0 and "refcoco: in " in result.stdout
    assert everything(root) == GOOD | {"refcoco.zip": toy.content}
    assert get("refcoco", root) == f"refcoco: already in {root}"
    assert toy.asked == [""]


def test_get_uses_an_archive_put_there_by_hand(toy: Server, tmp_path: Path) -> None:
    (tmp_path / "refcoco.zip").write_bytes(toy.content)
    get("refcoco", tmp_path)
    assert toy.asked == [] and (tmp_path / "refcoco/instances.json").exists()


def test_get_refuses_another_archive_put_there(toy: Server, tmp_path: Path) -> None:
    (tmp_path / "refcoco.zip").write_bytes(toy.content[:-1])
    with pytest.raises(DownloadError, match=r"refcoco\.zip: [\d,]+ bytes instead of"):
        get("refcoco", tmp_path)
    assert (tmp_path / "refcoco.zip").exists()  # it is the user's


def test_get_refuses_an_archive_that_lacks_something(
    toy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ARCHIVES["refcoco"]
    fields = (known.address, known.size, known.sha256, known.file, known.into)
    monkeypatch.setitem(ARCHIVES, "refcoco", Archive(*fields, files=("refcoco/refs(google).p",)))
    with pytest.raises(DownloadError, match="does not hold what it should"):
        get("refcoco", tmp_path)


def test_get_knows_what_there_is() -> None:
    with pytest.raises(DataError, match=r"'vg', only refcoco, refcoco\+, refcocog, train2014"):
        get("vg", ".")


@pytest.mark.parametrize("folder", ["images/train2014", "images/mscoco/images/train2014"])
def test_pictures_that_are_there_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(download, "NUMBER_OF_PICTURES", 2)
    (tmp_path / folder).mkdir(parents=True)
    for i in range(2):
        (tmp_path / folder / f"COCO_train2014_{i:012}.jpg").touch()
    assert get("train2014", tmp_path) == f"train2014: already in {tmp_path}"


def test_the_table() -> None:
    assert list(ARCHIVES) == ["refcoco", "refcoco+", "refcocog", "train2014"]
    for name, archive in ARCHIVES.items():
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert archive.file == f"{name}.zip" and archive.address.endswith(f"/{archive.file}")
        assert all(file.startswith(f"{name}/") for file in archive.files)

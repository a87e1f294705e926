"""save_pretrained and from_pretrained: there and back bit for bit, from a folder and from a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rislib.checkpoints import CheckpointError, from_pretrained, save_pretrained
from rislib.encoders import shipped_file
from rislib.methods import BUILDERS, CRIS, LAVT, build, cris_mini, lavt_mini

MINIS = [method for method, preset in BUILDERS if preset == "mini"]
EXPRESSIONS = ["the red cup", "the woman left of the dog"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small CRIS."""
    folder = tmp_path_factory.mktemp("kept") / "cris"
    torch.manual_seed(0)
    save_pretrained(cris_mini(pretrained=False, size=64), folder)
    return folder


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    """The same folder, to be spoilt."""
    return Path(shutil.copytree(kept, tmp_path / "copy"))


def rewrite(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# --- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MINIS)
@torch.inference_mode()
def test_there_and_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = build(name, "mini", pretrained=False, size=64)
    for key, tensor in network.state_dict().items():
        if "running" in key:
            tensor.add_(torch.rand_like(tensor))  # as after a training
    network = network.to(memory_format=torch.channels_last).eval()
    save_pretrained(network, tmp_path / name)
    assert json.loads((tmp_path / name / "config.json").read_text()) == {
        "method": name,
        "preset": "mini",
        "options": {"size": 64, "vocabulary": "vocabulary.txt"},
    }
    again = from_pretrained(tmp_path / name)
    assert type(again) is type(network) and not again.training
    assert again.preprocessing == network.preprocessing and again.preprocessing.size == 64
    before, after = network.inference_state(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    tokens, token_mask = network.tokenize(EXPRESSIONS)
    assert torch.equal(again.tokenize(EXPRESSIONS)[0], tokens)
    image = torch.rand(2, 3, 64, 64)
    again = again.to(memory_format=torch.channels_last)  # the order in memory is the order of sums
    logits = network(image, tokens, token_mask)
    assert logits.isfinite().all() and torch.equal(again(image, tokens, token_mask), logits)


@pytest.mark.parametrize(("method", "preset"), BUILDERS)
def test_every_named_size_is_remembered(method: str, preset: str) -> None:
    with torch.device("meta"):
        network = build(method, preset, size=192, **({"pretrained": False} if preset == "mini" else {}))
    assert network.built_by == (BUILDERS[method, preset], {"size": 192})


def test_where_the_weights_began_is_forgotten() -> None:
    assert cris_mini(False).built_by == cris_mini(pretrained=False).built_by == (cris_mini, {})


def test_kept_again_where_it_came_from(copy: Path) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    save_pretrained(from_pretrained(copy), copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert sorted(before) == ["config.json", "model.safetensors", "vocabulary.txt"]
    assert before["vocabulary.txt"] == shipped_file("vocab/refmini.txt").read_bytes()


def test_a_vocabulary_of_ones_own_travels(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("cup</w>\nred</w>\nthe</w>\n")
    network = lavt_mini(pretrained=False, vocabulary=mine)
    save_pretrained(network, tmp_path / "here")
    mine.unlink()
    moved = (tmp_path / "here").rename(tmp_path / "there")
    again = from_pretrained(moved)
    assert again.tokenize(["the red cup"])[0].tolist() == [[5, 4, 3, 2, 6]]
    assert again.tokenizer.vocab_size == network.tokenizer.vocab_size == 7


def test_no_file_outside_the_folder_is_named(copy: Path) -> None:
    (copy.parent / "vocabulary.txt").write_text("cup</w>\n")
    rewrite(copy, options={"size": 64, "vocabulary": "../vocabulary.txt"})
    assert from_pretrained(copy).tokenizer.vocab_size > 100  # the folder's own


def test_no_weights_are_fetched_to_be_overwritten(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def spy(**options) -> CRIS:
        asked.update(options)
        return cris_mini(**options)

    monkeypatch.setitem(BUILDERS, ("cris", "mini"), spy)
    rewrite(copy, options={"size": 64, "pretrained": True})
    from_pretrained(copy)
    assert asked == {"size": 64, "pretrained": False}


# --- refusals ---------------------------------------------------------------------------------


def test_another_class_is_refused(kept: Path) -> None:
    assert type(from_pretrained(kept, CRIS)) is CRIS
    with pytest.raises(TypeError, match="cris holds a CRIS, not a LAVT"):
        from_pretrained(kept, LAVT)


def test_unknown_builders_are_refused_by_name(copy: Path) -> None:
    rewrite(copy, method="polyformer", preset="large")
    with pytest.raises(ValueError, match="no method 'polyformer' of size 'large'; there are: cris mini"):
        from_pretrained(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', "KeyError.'options'"),
        ('{"options": {}, "preset": "mini"}', "KeyError.'method'"),
        ('{"method": "cris", "preset": "mini", "options": {"sise": 64}}', "'sise'"),
        ('["cris"]', "TypeError"),
        ('{"method": ', "JSONDecodeError"),
    ],
)
def test_other_configurations_are_refused(copy: Path, content: str, message: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json describes no network of ours: .*{message}"):
        from_pretrained(copy)


def test_weights_that_do_not_fit_are_refused_by_name(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["neck.q3.0.weight"]
    weights["neck.q6.0.weight"] = weights.pop("neck.q4.0.weight")
    weights["projector.sentence.bias"] = weights["projector.sentence.bias"][:-1].clone()
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        from_pretrained(copy)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.strip().split(" is ")[0] for line in lines) == [
        "misshapen: projector.sentence.bias",
        "missing: neck.q3.0.weight",
        "missing: neck.q4.0.weight",
        "unexpected: neck.q6.0.weight",
    ]


def test_incomplete_and_damaged_folders_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no checkpoint, or a damaged one"):
        from_pretrained(copy)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*model\.safetensors"):
        from_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        from_pretrained(copy)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere, and the hub says: "):
        from_pretrained(copy / "nowhere")  # no hub is asked for such a name


def test_what_cannot_be_built_again_is_not_written(tmp_path: Path) -> None:
    mini = cris_mini(pretrained=False)
    by_hand = CRIS(mini.clip, mini.tokenizer, size=96)
    with pytest.raises(ValueError, match="this CRIS was put together by hand"):
        save_pretrained(by_hand, tmp_path / "out")
    mini.built_by[1]["norm"] = torch.nn.LayerNorm
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_pretrained(mini, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- a hub ------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """As much of the hub as a download needs: one repository, `someone/small`, with one tag, `v1`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []  # path and token


@pytest.fixture
def hub(kept: Path) -> Iterator[Hub]:
    state = Hub(kept)
    files = {file.name: file.read_bytes() for file in kept.iterdir()} | {"training.log": b"private"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            state.asked.append((path, self.headers.get("Authorization")))
            about = "/api/models/someone/small"
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": f"{i:040}"}
                for i, (n, c) in enumerate(files.items())
            ]
            name = path.rpartition("/")[2]
            if path == f"{about}/revision/v1":
                self.answer(json.dumps({"id": "someone/small", "sha": COMMIT, "siblings": []}).encode())
            elif path == f"{about}/tree/{COMMIT}":
                self.answer(json.dumps(tree).encode())
            elif path == f"/someone/small/resolve/{COMMIT}/{name}" and name in files:
                self.answer(files[name], name)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, body: bytes, name: str = "") -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/octet-stream" if name else "application/json")
            if name:
                self.send_header("ETag", f'"{name}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.address = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()


FETCH = """
import sys
from rislib.checkpoints import from_pretrained, save_pretrained
from rislib.methods import CRIS

where = {"revision": "v1", "token": "hf_mine", "cache_dir": sys.argv[1]}
save_pretrained(from_pretrained("someone/small", CRIS, **where), sys.argv[2])
from_pretrained("someone/small", local_files_only=True, **where)  # kept in the cache
try:
    from_pretrained("someone/else", **where)
except FileNotFoundError as error:
    print(error)
"""


def test_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own: the hub's address is read once, when huggingface_hub is imported."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    printed = subprocess.run(
        [sys.executable, "-c", FETCH, str(cache), str(out)],
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout
    for file in hub.folder.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert "no folder someone/else, and the hub says: 404" in printed
    assert {token for path, token in hub.asked if "someone" in path} == {"Bearer hf_mine"}
    fetched = {path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "vocabulary.txt"}  # and not the log
    assert (cache / "models--someone--small/refs/v1").read_text() == COMMIT

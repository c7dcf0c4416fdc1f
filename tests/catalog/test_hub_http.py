"""``hf:owner/name`` over HTTP, against a small server that speaks the hub's protocol on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hepta.catalog.gguf import convert

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a server serves, and what it was asked for."""

    url: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository → file → content
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            state.asked.append(path)
            parts = path.removeprefix("api/models/").split("/")
            repository, files = "/".join(parts[:2]), state.files.get("/".join(parts[:2]))
            if repository in state.gated:
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            elif files is None:
                self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif "revision" in parts:
                self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode(), {})
            elif "tree" in parts:
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.answer(200, json.dumps(rows).encode(), {})
            else:
                data = files["/".join(parts[4:])]
                tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.answer(200, data, tag)

        def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def hepta(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, as a person with this hub would call it."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HEPTA_CACHE": str(home / "cache")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run(
        [sys.executable, "-m", "hepta", *words], env=environment, capture_output=True, text=True, timeout=120
    )


def test_only_what_cannot_run_code_is_downloaded_and_it_is_downloaded_once(tiny, tmp_path, hub):
    (tmp_path / "plain").mkdir()
    convert(tiny.write(tmp_path / "tiny.gguf"), tmp_path / "plain")
    good = {file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir()}
    bad = {"pytorch_model.bin": b"\x80", "modeling.py": b"x", "onnx/model.onnx": b"x", "training_args.bin": b"\x80"}
    hub.files["some/tiny"] = good | bad | {"README.md": b"---\nlicense: apache-2.0\n---\n"}
    first = hepta(hub, tmp_path, "fetch", "hf:some/tiny", "--output", str(tmp_path / "data"))
    assert first.returncode == 0, first.stderr
    assert "licence apache-2.0" in first.stderr
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {*good, "README.md"}
    assert (tmp_path / "data/some--tiny/model.safetensors").read_bytes() == good["model.safetensors"]
    hub.asked.clear()
    second = hepta(hub, tmp_path, "plan", "--model", "hf:some/tiny")
    assert second.returncode == 0, second.stderr
    assert hub.asked == []


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("some/gated", "hf:some/gated: is gated; accept its terms"),
        ("some/absent", "hf:some/absent: no such repository, or a private one"),
    ],
)
def test_a_plan_of_what_the_hub_refuses_is_one_line(tmp_path, hub, repository, message):
    hub.gated.add("some/gated")
    done = hepta(hub, tmp_path, "plan", "--model", f"hf:{repository}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_weights_that_are_pickled_are_refused(tmp_path, hub):
    hub.files["some/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    done = hepta(hub, tmp_path, "generate", "--model", "hf:some/pickled", "--prompt", "a")
    assert done.returncode == 2, done.stderr
    assert "hf:some/pickled: has no safetensors for weights" in done.stderr
    assert len(done.stderr.splitlines()) == 2  # that it is downloading, and why not


def test_no_network_is_one_line(tmp_path, hub):
    hub.url = "http://127.0.0.1:9"
    done = hepta(hub, tmp_path, "plan", "--model", "hf:some/tiny")
    assert done.returncode == 1
    assert "the Hugging Face hub cannot be reached" in done.stderr.splitlines()[-1]

"""A hub on this machine: as much of its API as reading and uploading take, over real HTTP, with what it sends counted."""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"
OTHER_COMMIT = "f" * 40

#: What a refused repository is answered with: status and error code.
REFUSALS = {
    "absent": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "unauthorized": (401, ""),
    "forbidden": (403, ""),
    "down": (500, ""),
}


@dataclass
class Repository:
    """The files of ``folder`` at one commit. ``fault`` names what goes wrong: a refusal, or something with its weight files.

    ``sent`` counts the bytes of each file that were sent, ``ranges`` lists what was asked of the weight files.
    """

    folder: Path
    fault: str = ""
    commit: str = COMMIT
    sent: Counter = field(default_factory=Counter)
    ranges: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def files(self):
        """The relative paths of all files."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@dataclass
class Uploads:
    """What was uploaded: whether the repository is ``private``, its ``files``, and its large ones, which came as LFS objects.

    ``fault`` is what goes wrong: the ``repository`` cannot be made, an ``object`` is refused, or the ``commit``. A request without
    ``token`` is refused.
    """

    token: str
    fault: str = ""
    private: bool | None = None
    files: dict = field(default_factory=dict)
    objects: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict
    uploads: Uploads | None

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        uploads = self.uploads
        uploads.asked.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {uploads.token}":
            return self.refuse(401, "")
        if self.path == "/api/repos/create":
            return self.make_repository(uploads, json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.reply(200, b'{"errors": [], "warnings": []}')
        if "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, json.dumps({"files": [{**mode, "shouldIgnore": False} for mode in modes]}).encode())
        if self.path.endswith(".git/info/lfs/objects/batch"):
            host = f"http://{self.headers['Host']}/objects"
            objects = [
                {**one, "actions": {"upload": {"href": f"{host}/{one['oid']}"}}} for one in json.loads(body)["objects"]
            ]
            return self.reply(200, json.dumps({"transfer": "basic", "objects": objects}).encode())
        return self.make_commit(uploads, body)

    def do_PUT(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.uploads.fault == "object":
            return self.refuse(403, "")
        self.uploads.objects[hashlib.sha256(raw).hexdigest()] = raw
        return self.reply(200, b"")

    def make_repository(self, uploads, wanted):
        if uploads.fault == "repository":
            return self.refuse(403, "")
        status = 200 if uploads.private is None else 409
        if uploads.private is None:
            uploads.private = wanted.get("visibility") == "private" or wanted.get("private") is True
        address = f"http://{self.headers['Host']}/{wanted['organization']}/{wanted['name']}"
        return self.reply(status, json.dumps({"url": address}).encode())

    def make_commit(self, uploads, body):
        if uploads.fault == "commit":
            return self.refuse(403, "")
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                uploads.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                uploads.files[value["path"]] = uploads.objects[value["oid"]]
        address = f"http://{self.headers['Host']}/org/made/commit/{COMMIT}"
        return self.reply(200, json.dumps({"success": True, "commitUrl": address, "commitOid": COMMIT}).encode())

    def answer(self):
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        repository = self.repositories.get(found[1]) if found else None
        if repository is None:
            return self.refuse(401, "RepoNotFound")
        repository.asked.append(self.path)
        if repository.fault == "silent":
            time.sleep(30)
        if repository.fault == "private" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "RepoNotFound")
        if repository.fault in REFUSALS:
            return self.refuse(*REFUSALS[repository.fault])
        kind, revision, name = found[2], found[3], found[4]
        if revision not in ("main", repository.commit):
            return self.refuse(404, "RevisionNotFound")
        if kind == "revision":
            return self.reply(200, json.dumps({"id": found[1], "sha": repository.commit}).encode())
        if kind == "tree":
            return self.reply(200, json.dumps(list(self.listing(repository))).encode())
        return self.send_file(repository, name)

    def listing(self, repository):
        for path in repository.files():
            name = str(path.relative_to(repository.folder))
            yield {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(name)}

    def send_file(self, repository, name):
        path = repository.folder / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        size, status = path.stat().st_size, 200
        first, last = 0, size - 1
        headers = {"ETag": f'"{etag(name)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
        is_weights = name.endswith(".safetensors")
        if is_weights:
            repository.ranges.append(self.headers.get("Range"))
            self.spoil(repository, headers)
        if asked and repository.fault != "whole files only":
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size + (repository.fault == 'another size')}"
        self.begin(status, last - first + 1, headers)
        if self.command == "HEAD":
            return None
        cut = repository.fault == "cut short" and is_weights
        self.close_connection = self.close_connection or cut
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            file.seek(first)
            left = (last - first + 1) // (2 if cut else 1)
            while left and (piece := file.read(min(left, 1 << 14))):
                if repository.fault == "another file" and is_weights and not asked:
                    piece = piece.replace(b"layers.0", b"layers.9")
                self.wfile.write(piece)
                repository.sent[name] += len(piece)
                left -= len(piece)
        return None

    def spoil(self, repository, headers):
        if repository.fault == "another commit":
            headers["X-Repo-Commit"] = OTHER_COMMIT
        if repository.fault == "changed in between" and len(repository.ranges) > 1:
            headers["ETag"] = '"another"'

    def refuse(self, status, code):
        self.reply(status, b"{}", {"X-Error-Code": code} if code else {})

    def reply(self, status, content, headers=None):
        self.begin(status, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status, nbytes, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(nbytes), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


def etag(name):
    """What the hub would call the content of a file: 40 hexadecimal digits."""
    return name.encode().hex()[:40].rjust(40, "0")


@contextlib.contextmanager
def hub(uploads=None, **repositories):
    """Serve repositories by name, as those of ``org``, and take uploads; gives the endpoint."""
    named = {f"org/{name}": repository for name, repository in repositories.items()}
    handler = type("Handler", (_Handler,), {"repositories": named, "uploads": uploads})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def environment(endpoint, home):
    """The variables under which a command asks that hub, with a cache of its own in ``home``."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return plain | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }  # fmt: skip


#: Runs commands one after another in one process, since what they import takes longer than they do.
_RUN = """
import contextlib, io, json, logging, sys, warnings
from graftkit.cli import run
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@contextlib.contextmanager
def commands(endpoint, home, **variables):
    """Give a function that runs a command against a hub and returns its exit code, output and error output."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home,
        env=environment(endpoint, home) | {"PYTHONPATH": str(ROOT)} | variables,
    ) as process:  # fmt: skip

        def run(*arguments):
            process.stdin.write(f"{json.dumps(arguments)}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run

"""A Hugging Face Hub on 127.0.0.1 for tests: the HTTP calls that huggingface_hub makes, answered from memory.

It keeps repositories as lists of commits, large files by their hash, and what the real Hub derives from a card
(`pipeline_tag`, `library_name`, the `custom_code` tag). It checks tokens and cards, and can be told to fail. The
client is the real one: point it here with `HF_ENDPOINT` and `HF_HUB_DISABLE_XET=1`.

    with LoopbackHub() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(home)})
"""

import atexit
import base64
import functools
import hashlib
import json
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
LARGE_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pth", ".pt2", "_data")
CARD_FIELDS = json.loads(
    (Path(__file__).resolve().parent.parent / "sapiens_hf" / "assets" / "hub_card_fields.json").read_text()
)


@dataclass
class Repository:
    """Commits, oldest first; each is (hash, path -> content)."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        parent = self.refs.get(branch, "")
        contents = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in files.items())
        digest = hashlib.sha1(f"{parent}|{message}|{len(self.commits)}|{contents}".encode()).hexdigest()
        self.commits.append((digest, files))
        self.refs[branch] = digest
        return digest

    def resolve(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = self.refs.get(revision, revision)
        return next(((sha, files) for sha, files in self.commits if sha == revision), None)


@dataclass
class Failure:
    """Answers `status` to the next `times` requests whose "METHOD path" matches; status 0 drops the connection."""

    pattern: str
    status: int
    times: int


@functools.lru_cache(None)
def _modules_folder() -> str:
    """Where transformers puts downloaded code; one for the process, because Python remembers where it first was."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def read_card(files: dict[str, bytes]) -> dict:
    text = files.get("README.md", b"").decode()
    match = re.match(r"---\n(.*?)\n---", text, re.S)
    return (yaml.safe_load(match[1]) or {}) if match else {}


class LoopbackHub:
    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self.user = "tester"
        self.lock = threading.Lock()

    def __enter__(self) -> "LoopbackHub":
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Variables that point a Python process with its cache in `home` here and nowhere else."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def patch(self, patch, home: Path, token: str = TOKEN) -> None:
        """Points the huggingface_hub and transformers of this process here; `patch` is pytest's monkeypatch."""
        import transformers.dynamic_module_utils
        import transformers.utils.hub
        from huggingface_hub import constants

        for name, value in self.environment(home, token).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", _modules_folder())

    def fail(self, pattern: str, status: int, times: int = 1) -> None:
        self.failures.append(Failure(pattern, status, times))

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model") -> str:
        """Put files into a repository without HTTP; returns the commit."""
        repository = self.repositories.setdefault((kind, repo_id), Repository())
        old = repository.commits[-1][1] if repository.commits else {}
        repository.large |= {path for path in files if path.endswith(LARGE_SUFFIXES)}
        return repository.commit({**old, **files}, "added")

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        found = self.repositories[kind, repo_id].resolve(revision)
        assert found is not None, f"{repo_id} has no revision {revision}"
        return found[1]

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)


class _Handler(BaseHTTPRequestHandler):
    state: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing on the console."""

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command != "HEAD" else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        with self.state.lock:
            self.state.requests.append(f"{self.command} {path}")
            failure = next((f for f in self.state.failures if re.search(f.pattern, f"{self.command} {path}")), None)
            if failure is not None:
                failure.times -= 1
                if failure.times <= 0:
                    self.state.failures.remove(failure)
                if failure.status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                return self._json({"error": "told to fail"}, failure.status)
            for method, pattern, handler in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == self.command.replace("HEAD", "GET"):
                    return handler(self, body, **match.groupdict())
            return self._json({"error": f"no such page: {path}"}, 404)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status: int = 200, headers: dict[str, str] | None = None):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _authorised(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._json({"error": "Invalid username or password."}, 401)
        return False

    def _repository(self, kind: str | None, repo: str) -> Repository | None:
        found = self.state.repositories.get(((kind or "models").rstrip("/").removesuffix("s"), repo))
        if found is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return found

    def _resolved(self, kind: str | None, repo: str, revision: str):
        repository = self._repository(kind, repo)
        if repository is None:
            return None
        found = repository.resolve(revision)
        if found is None:
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, *found

    # ------------------------------------------------------------------------------------------------------- pages
    def whoami(self, body):
        if self._authorised():
            token = {"accessToken": {"role": "write", "displayName": "loopback"}}
            self._json({"type": "user", "name": self.state.user, "orgs": [], "auth": token})

    def validate_card(self, body):
        card = read_card({"README.md": json.loads(body)["content"].encode()})
        errors = []
        for name, known in (("pipeline_tag", "pipeline_tags"), ("license", "licenses")):
            if card.get(name) is not None and card[name] not in CARD_FIELDS[known]:
                errors.append({"message": f'"{name}" must be one of {CARD_FIELDS[known][:3]}...'})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self, body):
        if not self._authorised():
            return
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or self.state.user}/{wanted['name']}"
        key = (wanted.get("type") or "model", repo)
        url = {"url": f"{self.state.endpoint}/{repo}", "name": repo}
        if key in self.state.repositories:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        self.state.repositories[key] = Repository()
        self.state.repositories[key].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self._json(url)

    def preupload(self, body, kind, repo, revision):
        if self._authorised() and (found := self._resolved(kind, repo, revision)):
            rows = []
            for item in json.loads(body)["files"]:
                content = found[2].get(item["path"])
                is_large = item["path"].endswith(LARGE_SUFFIXES)
                digest = None
                if content is not None:
                    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    digest = hashlib.sha256(content).hexdigest() if is_large else blob
                mode = "lfs" if is_large else "regular"
                rows.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": digest})
            self._json({"files": rows})

    def large_files(self, body, repo):
        if not self._authorised():
            return
        rows = []
        for item in json.loads(body)["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.state.objects:
                row["actions"] = {"upload": {"href": f"{self.state.endpoint}/upload/{item['oid']}"}}
            rows.append(row)
        self._json({"transfer": "basic", "objects": rows}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "hash of the upload differs"}, 400)
        self.state.objects[oid] = body
        return self._json({})

    def commit(self, body, kind, repo, revision):
        if not self._authorised() or not (found := self._resolved(kind, repo, revision)):
            return None
        repository, _, files = found
        files, summary = dict(files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    return self._json({"error": f"large file of {value['path']} was never uploaded"}, 400)
                files[value["path"]] = self.state.objects[value["oid"]]
                repository.large.add(value["path"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        sha = repository.commit(files, summary, revision)
        return self._json(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.state.endpoint}/{repo}/commit/{sha}"}
        )

    def add_tag(self, body, kind, repo, revision):
        if self._authorised() and (found := self._resolved(kind, repo, revision)):
            found[0].refs[json.loads(body)["tag"]] = found[1]
            self._json({})

    def info(self, body, kind, repo, revision="main"):
        found = self._resolved(kind, repo, revision)
        if found is None:
            return
        _, sha, files = found
        card = read_card(files)
        config = json.loads(files.get("config.json", b"{}"))
        tags = [*card.get("tags", []), *(["custom_code"] if "auto_map" in config else [])]
        self._json(
            {
                "_id": sha[:24],
                "id": repo,
                "modelId": repo,
                "sha": sha,
                "private": False,
                "tags": tags,
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": card,
                "siblings": [{"rfilename": path, "size": len(content)} for path, content in files.items()],
            }
        )

    def tree(self, body, kind, repo, revision):
        found = self._resolved(kind, repo, revision)
        if found is None:
            return
        repository, _, files = found
        rows = []
        for path, content in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row = {"type": "file", "oid": blob, "size": len(content), "path": path}
            if path in repository.large:
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            rows.append(row)
        self._json(rows)

    def refs(self, body, kind, repo):
        if (repository := self._repository(kind, repo)) is not None:
            rows = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repository.refs.items()]
            self._json({"branches": rows[:1], "tags": rows[1:], "converts": []})

    def resolve(self, body, repo, revision, path, kind=None):
        found = self._resolved(kind, repo, revision)
        if found is None:
            return
        repository, sha, files = found
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self._json({"error": f"{path} does not exist"}, 404, headers)
        content = files[path]
        digest = hashlib.sha256(content) if path in repository.large else hashlib.sha1(content)
        headers = {"ETag": f'"{digest.hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path in repository.large:
            headers["X-Linked-Etag"], headers["X-Linked-Size"] = headers["ETag"], str(len(content))
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            last = min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {wanted[1]}-{last}/{len(content)}"
            status, content = 206, content[int(wanted[1]) : last + 1]
        return self._send(content, status, headers)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_KIND = r"(?P<kind>models|spaces|datasets)"
ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate_card),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", f"/api/{_KIND}/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"(?:/spaces|/datasets)?/{_REPO}.git/info/lfs/objects/batch", _Handler.large_files),
    ("PUT", "/upload/(?P<oid>[0-9a-f]+)", _Handler.upload),
    ("POST", f"/api/{_KIND}/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", f"/api/{_KIND}/{_REPO}/tag/(?P<revision>.+)", _Handler.add_tag),
    ("GET", f"/api/{_KIND}/{_REPO}/tree/(?P<revision>[^/]+)(?:/.*)?", _Handler.tree),
    ("GET", f"/api/{_KIND}/{_REPO}/refs", _Handler.refs),
    ("GET", f"/api/{_KIND}/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", f"/api/{_KIND}/{_REPO}", _Handler.info),
    ("GET", f"/(?:(?P<kind>spaces|datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]

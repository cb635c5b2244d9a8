"""A stand-in of the Hub: as much of its HTTP interface as `huggingface_hub` needs to publish a model and to load it.

Whatever arrives is checked against the checksum that was announced for it, and kept by commit in memory. Xet is not
offered; clients run with `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants, hf_api

TOKEN, READER = "hf_writes", "hf_reads"
OWNER = "user"


@dataclass
class Repository:
    """Branches of a model, each a list of commits; a commit holds all files."""

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=lambda: {"main": []})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def head(self, revision: str = "main") -> str | None:
        """Name of the commit that a revision stands for; `None` if there is no such revision."""
        if revision in self.commits:
            return revision
        commits = self.branches.get(revision)
        return None if commits is None else commits[-1] if commits else "0" * 40

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Files of a revision by path."""
        return self.commits.get(self.head(revision), {})

    def commit(self, revision: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit and return its name."""
        content = [message, len(self.commits), *((path, _git_oid(data)) for path, data in sorted(files.items()))]
        name = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[name] = files
        self.branches[revision].append(name)
        self.messages.append(message)
        return name


class HubServer(ThreadingHTTPServer):
    """The server; `with HubServer() as hub:` serves at `hub.url` until the block ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks_at: str | None = None
        """Answer requests whose line holds this text with an error of the server."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, cache: str, token: str | None = TOKEN) -> dict[str, str]:
        """What a client's process needs in its environment to talk to this server alone."""
        said = {"HF_ENDPOINT": self.url, "HF_HOME": cache, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        said |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        return said | ({} if token is None else {"HF_TOKEN": token})

    def connect(self, monkeypatch, cache: Path) -> None:
        """Make this server the Hub of this process, where the library was imported with another one."""
        said = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
        }
        said |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache)}
        for name, value in said.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        for name, value in {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **facts: str) -> None:
        self.status, self.message, self.code, self.facts = status, message, code, facts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query, self.place = parse_qs(parts.query), unquote(parts.path).strip("/")
        self.server.requests.append(f"{self.command} {self.place}")
        try:
            if self.server.breaks_at and self.server.breaks_at in self.server.requests[-1]:
                raise _Refused(500, "the server is broken")
            if self.place.startswith("api/"):
                self._answer(self._api(self.place.split("/")[1:]))
            elif self.place.endswith(".git/info/lfs/objects/batch"):
                self._may_write()
                self._answer(self._batch(self.place.partition(".git/")[0]))
            elif self.place.startswith("lfs/"):
                self._answer(self._large_file(self.place.split("/")[1]))
            else:
                self._resolve(self.place)
        except _Refused as refused:
            content = {"error": refused.message, **refused.facts}
            self._answer(content, refused.status, {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(BrokenPipeError):
                self.wfile.write(data)

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self) -> None:
        if self._token == READER:
            raise _Refused(403, "this token may only read")
        if self._token != TOKEN:
            raise _Refused(401, "Invalid username or password.")

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self._token not in (TOKEN, READER)):
            raise _Refused(404 if self._token else 401, f"Repository {name} not found", "RepoNotFound")
        return repository

    def _head(self, repository: Repository, revision: str) -> str:
        head = repository.head(revision)
        if head is None:
            raise _Refused(404, f"no revision {revision}", "RevisionNotFound")
        return head

    def _api(self, words: list[str]) -> object:
        if words == ["whoami-v2"]:
            self._may_write()
            return {"type": "user", "name": OWNER, "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        if words == ["repos", "create"]:
            return self._create()
        if words == ["validate-yaml"]:
            starts = json.loads(self.body)["content"].startswith("---\n")
            return {"errors": [], "warnings": [] if starts else [{"message": "no metadata"}]}
        name, rest = "/".join(words[1:3]), words[3:]
        if not rest or rest[0] == "revision":
            return self._info(name, rest[1] if rest else "main")
        if rest[0] == "tree":
            return self._tree(name, *rest[1:2])
        self._may_write()
        revision = "/".join(rest[1:])
        return {"preupload": self._preupload, "commit": self._commit, "branch": self._branch}[rest[0]](name, revision)

    def _create(self) -> object:
        self._may_write()
        wish = json.loads(self.body)
        owner = wish.get("organization") or OWNER
        if owner != OWNER:
            raise _Refused(403, f"no right to create a repository for {owner}")
        name = f"{owner}/{wish['name']}"
        if name in self.server.repositories:
            raise _Refused(409, "You already created this model repo", url=f"{self.server.url}/{name}")
        self.server.repositories[name] = Repository(wish.get("visibility") == "private" or wish.get("private") is True)
        return {"url": f"{self.server.url}/{name}"}

    def _branch(self, name: str, branch: str) -> object:
        repository = self._repository(name)
        if branch in repository.branches:
            raise _Refused(409, "Reference already exists")
        repository.branches[branch] = list(repository.branches["main"])
        return {}

    def _info(self, name: str, revision: str) -> object:
        repository = self._repository(name)
        head = self._head(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.files(head))]
        facts = {"id": name, "modelId": name, "sha": head, "siblings": siblings, "private": repository.private}
        return facts | {"tags": [], "downloads": 0, "likes": 0, "pipeline_tag": "text-to-video"}

    def _tree(self, name: str, revision: str) -> object:
        repository = self._repository(name)
        files = repository.files(self._head(repository, revision))
        return [{"type": "file", "path": p, "size": len(d), "oid": _git_oid(d)} for p, d in sorted(files.items())]

    def _preupload(self, name: str, revision: str) -> object:
        files = self._repository(name).files(revision)
        self._head(self._repository(name), revision)

        def plan(file: dict) -> dict:
            large = file["path"].endswith((".safetensors", ".mp4", ".gif", ".bin")) or file["size"] > 2**20
            known = files.get(file["path"])
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": None if known is None else hashlib.sha256(known).hexdigest() if large else _git_oid(known),
            }

        return {"files": [plan(file) for file in json.loads(self.body)["files"]]}

    def _batch(self, name: str) -> object:
        self._repository(name)
        wish = json.loads(self.body)
        actions = {}
        for wanted in wish["objects"]:
            if wanted["oid"] not in self.server.large_files:
                place = f"{self.server.url}/lfs/{wanted['oid']}"
                actions[wanted["oid"]] = {"actions": {"upload": {"href": place}, "verify": {"href": place}}}
        return {
            "transfer": "basic",
            "objects": [wanted | actions.get(wanted["oid"], {}) for wanted in wish["objects"]],
        }

    def _large_file(self, oid: str) -> object:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Refused(422, "the bytes that arrived have another checksum")
            self.server.large_files[oid] = self.body
        elif len(self.server.large_files.get(oid, b"")) != json.loads(self.body)["size"]:
            raise _Refused(422, "the file has not arrived whole")
        return {}

    def _commit(self, name: str, revision: str) -> object:
        repository = self._repository(name)
        files, message = dict(repository.files(revision)), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            else:
                raise _Refused(400, f"unknown operation {item['key']}")
        commit = repository.commit(revision, files, message)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}

    def _resolve(self, place: str) -> None:
        owner, name, word, revision, *path = place.split("/")
        if word != "resolve":
            raise _Refused(404, "no such page")
        repository = self._repository(f"{owner}/{name}")
        head = self._head(repository, revision)
        data = repository.files(head).get("/".join(path))
        headers = {"X-Repo-Commit": head}
        if data is None:
            self._answer({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        else:
            self._answer(data, headers=headers | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

"""A Hub on the loopback interface: repositories of models with commits, branches, tags, LFS and ranges; in memory.

    with HubServer() as server:
        os.environ["HF_ENDPOINT"] = server.url

It answers the HTTP calls of `huggingface_hub` 2.4 as huggingface.co does, headers, redirects and error codes included,
and writes down each request in `server.requests`. A token is needed to write, and to see private repositories.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
USER = "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".pt", ".onnx")
LFS_SIZE = 10 * 2**20


class File(NamedTuple):
    content: bytes
    lfs: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self):
        """The identifier of git, of the content or of the pointer to it."""
        content = self.content
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


class Repository:
    """Commits are snapshots: {path: File}. References are branches and tags."""

    def __init__(self, name, private):
        self.name, self.private, self.commits, self.messages = name, private, {}, {}
        self.branches, self.tags = {}, {}
        self.commit("main", {}, "initial commit", None)

    def commit(self, branch, files, message, parent):
        body = json.dumps([{p: f.oid for p, f in sorted(files.items())}, message, parent, len(self.commits)])
        sha = hashlib.sha1(body.encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def resolve(self, revision):
        """The sha of a branch, a tag or a sha; None if there is none."""
        known = self.branches | self.tags
        return known.get(revision, revision if revision in self.commits else None)


class HubServer:
    """See the module. `cut_once[ending] = n` breaks the next download of such a file off after n bytes."""

    def __init__(self):
        self.repositories, self.objects, self.requests, self.cut_once = {}, {}, [], {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.hub, self._server.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = (
            f"http://localhost:{self._server.server_port}"  # another host, as the Hub's: clients do not follow HEADs
        )

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, name, revision="main"):
        """{path: File} of a repository."""
        repository = self.repositories[name]
        return repository.commits[repository.resolve(revision)]


ROUTES = []


def route(method, pattern):
    """Registers a method of `Handler` for a path; groups of the pattern are its arguments."""

    def add(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


NAME = r"(?P<name>[^/]+/[^/]+)"


class HubError(Exception):
    """An answer with an error: status, X-Error-Code, message."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.hub = self.server.hub
        self.hub.requests.append((self.command, parts.path, self.headers.get("Range")))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for known, pattern, function in ROUTES:
                if known == method and (match := pattern.fullmatch(parts.path)):
                    return function(self, **{key: unquote(value) for key, value in match.groupdict().items() if value})
            raise HubError(404, "RouteNotFound", f"no route {self.command} {parts.path}")
        except HubError as error:
            status, code, message = error.args
            self._send(
                status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message}
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    # --- small things -----------------------------------------------------------------------------------------------

    def _send(self, status, content=b"", headers=None, cut=None):
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": len(content)} | (headers or {})
        ).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode())

    def _writer(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "", "Invalid username or password.")

    def _repository(self, name):
        repository = self.hub.repositories.get(name)
        hidden = (
            repository is not None and repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        )
        if repository is None or hidden:
            raise HubError(401 if hidden else 404, "RepoNotFound", f"Repository {name} not found")
        return repository

    def _commit(self, name, revision):
        repository = self._repository(name)
        sha = repository.resolve(revision)
        if sha is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha

    # --- repositories -----------------------------------------------------------------------------------------------

    @route("GET", r"/api/whoami-v2")
    def whoami(self):
        self._writer()
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    @route("POST", r"/api/repos/create")
    def create(self):
        self._writer()
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return self._json(answer | {"error": "You already created this model repo"}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(name, bool(private))
        self._json(answer)

    @route("DELETE", r"/api/repos/delete")
    def delete(self):
        self._writer()
        wanted = json.loads(self.body)
        self._repository(f"{wanted.get('organization') or USER}/{wanted['name']}")
        del self.hub.repositories[f"{wanted.get('organization') or USER}/{wanted['name']}"]
        self._json({})

    @route("GET", rf"/api/models/{NAME}(/revision/(?P<revision>[^/]+))?")
    def info(self, name, revision="main"):
        repository, sha = self._commit(name, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        answer = {
            "_id": name,
            "id": name,
            "modelId": name,
            "sha": sha,
            "siblings": siblings,
            "private": repository.private,
        }
        self._json(answer | {"tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})

    @route("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def tree(self, name, revision, folder=""):
        repository, sha = self._commit(name, revision)
        files = {p: f for p, f in repository.commits[sha].items() if p.startswith(f"{folder}/" if folder else "")}
        if folder and not files:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self._json([_entry(path, file) for path, file in sorted(files.items())])

    @route("POST", rf"/api/models/{NAME}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, name, revision):
        repository, sha = self._commit(name, revision)
        wanted = json.loads(self.body)["paths"]
        self._json([_entry(p, f) for p, f in sorted(repository.commits[sha].items()) if p in wanted])

    @route("GET", rf"/api/models/{NAME}/refs")
    def refs(self, name):
        repository = self._repository(name)
        kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
        lists = {
            kind: [{"name": n, "ref": f"refs/{path}/{n}", "targetCommit": sha} for n, sha in found.items()]
            for kind, (path, found) in kinds.items()
        }
        self._json(lists | {"converts": []})

    @route("POST", rf"/api/models/{NAME}/(?P<kind>branch|tag)/(?P<target>[^/]+)")
    def create_reference(self, name, kind, target):
        self._writer()
        wanted = json.loads(self.body or b"{}")
        new, start = (wanted["tag"], target) if kind == "tag" else (target, wanted.get("startingPoint", "main"))
        repository, sha = self._commit(name, start)
        references = repository.tags if kind == "tag" else repository.branches
        if new in references:
            raise HubError(409, "", f"Reference {new} already exists")
        references[new] = sha
        self._json({})

    # --- upload -----------------------------------------------------------------------------------------------------

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self):
        self._json({"errors": [], "warnings": []})

    @route("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)")
    def preupload(self, name, revision):
        self._writer()
        repository, sha = self._commit(name, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            big = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
            old = repository.commits[sha].get(file["path"])
            answers.append({"path": file["path"], "uploadMode": "lfs" if big else "regular", "shouldIgnore": False})
            answers[-1] |= {"oid": old.oid} if old else {}
        self._json({"files": answers})

    @route("POST", rf"/{NAME}\.git/info/lfs/objects/batch")
    def lfs_batch(self, name):
        self._writer()
        self._repository(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            known = item["oid"] in self.hub.objects
            header = {"Authorization": f"Bearer {TOKEN}"}
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs/{item['oid']}/verify", "header": header},
            }
            objects.append({"oid": item["oid"], "size": item["size"]} | ({} if known else {"actions": actions}))
        self._json({"transfer": "basic", "objects": objects})

    @route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "", "content does not have this hash")
        self.hub.objects[oid] = self.body
        self._send(200)

    @route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify")
    def lfs_verify(self, oid):
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(oid, b"")) != wanted["size"]:
            raise HubError(404, "", "no such object")
        self._json({})

    @route("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)")
    def commit(self, name, revision):
        self._writer()
        repository = self._repository(name)
        if revision not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        parent = repository.branches[revision]
        files, message = dict(repository.commits[parent]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            else:
                files = {p: f for p, f in files.items() if p != value["path"] and not p.startswith(value["path"] + "/")}
        sha = repository.commit(revision, files, message, parent)
        self._json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""})

    # --- download ---------------------------------------------------------------------------------------------------

    @route("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, name, revision, path):
        repository, sha = self._commit(name, revision)
        file = repository.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file is None:
            message = f"Entry not found: {path}"
            self._send(404, message.encode(), headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": message})
        elif file.lfs:  # as from the Hub: the content is on another server
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": len(file.content), "ETag": f'"{file.oid}"'}
            self._send(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{file.sha256}?path={path}"})
        else:
            self._content(path, file.content, headers | {"ETag": f'"{file.etag}"'})

    @route("GET", r"/cdn/(?P<oid>[0-9a-f]{64})")
    def cdn(self, oid):
        self._content(self.query["path"], self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, path, content, headers):
        headers["Content-Type"] = "application/octet-stream"
        ending = next((e for e in self.hub.cut_once if path.endswith(e) and self.command == "GET"), None)
        cut = self.hub.cut_once.pop(ending, None)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self._send(206, content[start:], headers | {"Content-Length": len(content) - start}, cut)
        self._send(200, content, headers | {"Content-Length": len(content)}, cut)


def _entry(path, file):
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
    return entry | ({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}} if file.lfs else {})

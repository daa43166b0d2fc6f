"""A small Hub on loopback: repositories in memory, pushes, and the faults that networks have."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_test'
LARGE = '.safetensors'


@dataclass
class Repository:
    """Commits, oldest first: their hash and all their files."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [('0' * 40, {})])
    branches: dict[str, str] = field(default_factory=lambda: {'main': '0' * 40})
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = 'main', removed: Sequence[str] = ()) -> str:
        before = {name: data for name, data in (self.files(branch) or {}).items() if name not in removed}
        oid = hashlib.sha1(f'{len(self.commits)}{sorted(files)}'.encode()).hexdigest()
        self.commits.append((oid, {**before, **files}))
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in dict(self.commits) else None

    def files(self, revision: str) -> dict[str, bytes] | None:
        oid = self.resolve(revision)
        return None if oid is None else dict(self.commits)[oid]


class Hub(ThreadingHTTPServer):
    """The server; `faults` maps FILE or ORG/NAME/FILE to what goes wrong with it: flip, truncate, cut, or a status.

    As the Hub, it sends large files from another host (that of the content), and names them by SHA-256 on the way.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, str] = {}
        # Files sent: (name, bytes from), and changes asked for.
        self.sent: list[tuple[str, int]] = []
        self.pushes = 0
        # What organisations make where nothing is asked for.
        self.visibility = 'public'
        self.before_commit: Any = None
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def add(self, name: str, files: dict[str, bytes], **kwargs: Any) -> Repository:
        repository = self.repositories[name] = Repository(**kwargs)
        repository.commit(files)
        return repository


def etag(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f'blob {len(data)}\0'.encode() + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b'', head: bool = False, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {'Content-Length': str(len(data)), **headers}.items():
            self.send_header(key.replace('_', '-'), value)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def refuse(self, code: str, status: int = 404, head: bool = False) -> None:
        self.answer(status, {'error': code}, head, X_Error_Code=code, X_Error_Message=code)

    def allowed(self) -> bool:
        return self.headers.get('Authorization') == f'Bearer {TOKEN}'

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        head = self.command == 'HEAD'
        path = urlsplit(self.path).path
        if path == '/':
            return self.answer(200, head=head)
        if path == '/api/whoami-v2':
            return self.answer(200, {'name': 'me', 'type': 'user'}) if self.allowed() else self.answer(401, {})
        if found := re.fullmatch(r'/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(/.*)?', path):
            name, kind, revision = found[1], found[2], unquote(found[3] or 'main')
            repository = self.server.repositories.get(name)
            if repository is None:
                return self.refuse('RepoNotFound')
            files = repository.files(revision)
            if files is None:
                return self.refuse('RevisionNotFound')
            listed = [
                {
                    **{'rfilename': file, 'path': file, 'type': 'file', 'size': len(data)},
                    **{'blobId': hashlib.sha1(data).hexdigest() if file.endswith(LARGE) else etag(file, data)},
                    **{'oid': etag(file, data)},
                    **(
                        {
                            'lfs': {
                                'sha256': etag(file, data),
                                'oid': etag(file, data),
                                'size': len(data),
                                'pointerSize': 9,
                            }
                        }
                        if file.endswith(LARGE)
                        else {}
                    ),
                }
                for file, data in files.items()
            ]
            if kind == 'tree':
                return self.answer(200, listed)
            oid = repository.resolve(revision)
            described = {'id': name, 'modelId': name, 'sha': oid, 'siblings': listed, 'tags': []}
            return self.answer(200, {**described, 'private': repository.private})
        if found := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
            return self.send_file(*map(unquote, found.groups()), head)
        self.answer(404, {}, head)

    def send_file(self, name: str, revision: str, file: str, head: bool) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.refuse('RepoNotFound', head=head)
        # The content's host knows no tokens: its addresses are signed.
        signed = urlsplit(f'//{self.headers["Host"]}').hostname == 'localhost'
        if repository.gated and not signed and not self.allowed():
            return self.refuse('GatedRepo', 403, head)
        files = repository.files(revision)
        oid = repository.resolve(revision) or ''
        if files is None:
            return self.refuse('RevisionNotFound', head=head)
        if file not in files:
            return self.answer(404, b'', head, X_Error_Code='EntryNotFound', X_Repo_Commit=oid)
        data = files[file]
        fault = self.server.faults.get(file) or self.server.faults.get(f'{name}/{file}')
        if fault is not None and fault.isdigit():
            return self.answer(int(fault), {'error': 'busy'}, head)
        headers = {'X_Repo_Commit': oid, 'ETag': f'"{etag(file, data)}"'}
        if file.endswith(LARGE) and not signed:
            headers |= {'ETag': '"0"', 'X_Linked_Etag': f'"{etag(file, data)}"', 'X_Linked_Size': str(len(data))}
            content = f'http://localhost:{self.server.server_port}{self.path}'
            return self.answer(302, b'', head, Location=content, **headers)
        if head:
            self.send_response(200)
            for key, value in {**headers, 'Content_Length': str(len(data))}.items():
                self.send_header(key.replace('_', '-'), value)
            return self.end_headers()
        wanted = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(wanted[1]) if wanted else 0
        self.server.sent.append((file, start))
        if fault == 'flip':
            middle = len(data) // 2
            data = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 4]) + data[middle + 4 :]
        if fault == 'cut':
            # Once, in the middle; whoever asks for the rest gets it.
            del self.server.faults[file]
            self.send_response(200)
            for key, value in {**headers, 'Content_Length': str(len(data))}.items():
                self.send_header(key.replace('_', '-'), value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        if fault == 'truncate':
            return self.answer(200, data[: len(data) // 2], **headers)
        if wanted:
            end = len(data) - 1
            self.answer(206, data[start:], Content_Range=f'bytes {start}-{end}/{len(data)}', **headers)
        else:
            self.answer(200, data, **headers)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if path == '/api/validate-yaml':
            return self.answer(200, {'errors': [], 'warnings': []})
        if not self.allowed():
            return self.answer(401, {'error': 'Invalid credentials'})
        if path == '/api/repos/create':
            asked = json.loads(body)
            name = f'{asked.get("organization") or "me"}/{asked["name"]}'
            if name in self.server.repositories:
                return self.answer(409, {'error': 'exists', 'url': f'{self.server.url}/{name}'})
            visibility = asked.get('visibility', self.server.visibility)
            self.server.repositories[name] = Repository(private=visibility == 'private')
            return self.answer(200, {'url': f'{self.server.url}/{name}', 'name': name})
        found = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)', path)
        if found is None or found[1] not in self.server.repositories:
            return self.refuse('RepoNotFound')
        repository = self.server.repositories[found[1]]
        branch = unquote(found[3])
        if found[2] == 'branch':
            if branch in repository.branches:
                return self.answer(409, {'error': 'exists'})
            repository.branches[branch] = repository.branches['main']
            return self.answer(200, {})
        if found[2] == 'preupload':
            modes = [
                {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False, 'oid': None}
                for file in json.loads(body)['files']
            ]
            return self.answer(200, {'files': modes})
        if self.server.before_commit:
            self.server.before_commit()
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]['value']
        if header.get('parentCommit') not in (None, repository.branches[branch]):
            return self.answer(412, {'error': 'A commit has happened since. Please refresh and try again.'})
        files = {
            line['value']['path']: base64.b64decode(line['value']['content'])
            for line in lines[1:]
            if line['key'] == 'file'
        }
        removed = [line['value']['path'] for line in lines[1:] if line['key'] == 'deletedFile']
        oid = repository.commit(files, branch, removed)
        self.server.pushes += 1
        url = f'{self.server.url}/{found[1]}/commit/{oid}'
        self.answer(200, {'success': True, 'commitOid': oid, 'commitUrl': url, 'hookOutput': ''})

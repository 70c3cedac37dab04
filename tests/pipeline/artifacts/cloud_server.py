"""The part of Google's and Azure's storage interfaces that reading needs: `python cloud_server.py PORT FOLDER`.

FOLDER/BUCKET/KEY is an object; Azure's account is the first part of an address. Every request is a line on stderr.
"""

import json
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TIME = "2026-11-20T10:11:12.000Z"
HTTP_TIME = "Fri, 20 Nov 2026 10:11:12 GMT"
BLOB = {"x-ms-blob-type": "BlockBlob", "x-ms-creation-time": HTTP_TIME, "x-ms-server-encrypted": "false"}
CONTAINER = {
    "x-ms-lease-status": "unlocked",
    "x-ms-lease-state": "available",
    "x-ms-has-immutability-policy": "false",
    "x-ms-has-legal-hold": "false",
    "x-ms-immutable-storage-with-versioning-enabled": "false",
    "x-ms-default-encryption-scope": "scope",
    "x-ms-deny-encryption-scope-override": "false",
}


class Handler(BaseHTTPRequestHandler):
    """Answers both; Google's addresses begin with /storage/v1/b/."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(address.query))
        if address.path.startswith("/storage/v1/b/"):
            bucket, _, key = address.path.removeprefix("/storage/v1/b/").partition("/o")
            self.google(bucket, urllib.parse.unquote(key.removeprefix("/")), asked)
        else:
            container, _, key = urllib.parse.unquote(address.path).split("/", 2)[2].partition("/")
            self.azure(container, key, asked)

    def do_HEAD(self) -> None:
        self.do_GET()

    def google(self, bucket: str, key: str, asked: dict[str, str]) -> None:
        objects = self.objects(bucket)
        if not (self.folder / bucket).is_dir() or (key and key not in objects):
            self.answer(404, b'{"error": {"code": 404, "message": "nothing"}}')
        elif key and asked.get("alt") == "media":
            self.content(objects[key], {"x-goog-generation": "1"})
        elif key:
            self.answer(200, json.dumps(self.google_object(bucket, key)).encode())
        elif "prefix" in asked:
            items = [self.google_object(bucket, name) for name in objects if name.startswith(asked["prefix"])]
            self.answer(200, json.dumps({"kind": "storage#objects", "items": items}).encode())
        else:
            self.answer(200, json.dumps({"kind": "storage#bucket", "name": bucket, "id": bucket}).encode())

    def google_object(self, bucket: str, key: str) -> dict[str, Any]:
        size = str((self.folder / bucket / key).stat().st_size)
        name = {"kind": "storage#object", "bucket": bucket, "name": key, "generation": "1"}
        return name | {"size": size, "updated": TIME, "timeCreated": TIME, "etag": f"tag-{size}"}

    def azure(self, container: str, key: str, asked: dict[str, str]) -> None:
        objects = self.objects(container)
        if not (self.folder / container).is_dir():
            self.answer(404, b"", {"x-ms-error-code": "ContainerNotFound"})
        elif asked.get("action") == "getAccessControl":
            self.answer(400, b"", {"x-ms-error-code": "HierarchicalNamespaceNotEnabled"})
        elif asked.get("comp") == "list":
            self.answer(200, self.azure_list(container, asked.get("prefix", ""), asked.get("delimiter")))
        elif not key:
            self.answer(200, b"", self.tag(b"") | CONTAINER)
        elif key not in objects:
            self.answer(404, b"", {"x-ms-error-code": "BlobNotFound"})
        else:
            self.content(objects[key], self.tag(objects[key].read_bytes()) | BLOB)

    def azure_list(self, container: str, prefix: str, delimiter: str | None) -> bytes:
        below = [name.removeprefix(prefix) for name in self.objects(container) if name.startswith(prefix)]
        files = [name for name in below if not delimiter or delimiter not in name]
        folders = sorted({name.partition("/")[0] for name in below if name not in files})
        text = "".join(
            f"<Blob><Name>{prefix}{name}</Name><Properties><Creation-Time>{HTTP_TIME}</Creation-Time>"
            f"<Last-Modified>{HTTP_TIME}</Last-Modified><Etag>tag</Etag><BlobType>BlockBlob</BlobType>"
            f"<Content-Length>{(self.folder / container / (prefix + name)).stat().st_size}</Content-Length>"
            "</Properties></Blob>"
            for name in files
        )
        text += "".join(f"<BlobPrefix><Name>{prefix}{name}/</Name></BlobPrefix>" for name in folders)
        return f"<EnumerationResults><Blobs>{text}</Blobs><NextMarker/></EnumerationResults>".encode()

    def tag(self, content: bytes) -> dict[str, str]:
        return {"ETag": f'"tag-{len(content)}"', "Last-Modified": HTTP_TIME}

    def objects(self, bucket: str) -> dict[str, Path]:
        root = self.folder / bucket
        return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def content(self, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        span = self.headers.get("x-ms-range") or self.headers.get("Range")
        if span is None:
            self.answer(200, content, headers)
            return
        first, last = span.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        where = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.answer(206, part, headers | {"Content-Range": where})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "x-ms-request-id": "1"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

"""The Hugging Face hub on loopback, as far as an upload goes: it keeps what arrives."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants


class StubHub:
    """One repository, with the ``files`` that it holds. ``refuses`` is a part of a path that answers 403."""

    def __init__(self, refuses=None):
        self.refuses, self.files, self.made, self.requests, self.tokens = refuses, {}, [], [], set()
        hub, large = self, {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if not self.path.startswith("/api/models/"):  # what the client asks about itself, and would keep
                    return self.answer({"error": "not found"}, 404)
                sizes = {name: len(content) for name, content in hub.files.items()}
                self.answer([{"type": "file", "path": name, "size": n, "oid": "0"} for name, n in sizes.items()])

            def do_PUT(self):
                large[self.path.rpartition("/")[2]] = self.body()
                self.answer({})

            def do_POST(self):
                body = self.body()
                if hub.refuses is not None and hub.refuses in self.path:
                    self.answer({"error": "You may not write here"}, 403)
                elif self.path.endswith("/api/repos/create"):
                    hub.made.append(json.loads(body))
                    self.answer({"url": f"{hub.url}/me/mine"})
                elif "/preupload/" in self.path:
                    self.answer({"files": [mode(one["path"]) for one in json.loads(body)["files"]]})
                elif self.path.endswith("/objects/batch"):
                    objects = [self.place(one) for one in json.loads(body)["objects"]]
                    self.answer({"transfer": "basic", "objects": objects})
                elif "/commit/" in self.path:
                    self.commit([json.loads(line) for line in body.splitlines()])
                    self.answer({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1" * 40})
                else:
                    self.answer({})

            def place(self, one):
                return one | {"actions": {"upload": {"href": f"{hub.url}/large/{one['oid']}"}}}

            def commit(self, lines):
                for line in lines:
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = large[value["oid"]]
                    elif line["key"] == "deletedFile":
                        del hub.files[value["path"]]

            def body(self):
                hub.requests.append(self.path)
                hub.tokens.add(self.headers.get("Authorization"))
                if "Content-Length" in self.headers:
                    return self.rfile.read(int(self.headers["Content-Length"]))
                parts = iter(lambda: self.rfile.read(int(self.rfile.readline(), 16) + 2)[:-2], b"")  # chunked
                return b"".join(parts)

            def answer(self, said, status=200):
                text = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def mode(path):
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


@contextmanager
def serving(monkeypatch, **settings):
    """A hub that this process takes for the real one, logged in to with a token; it is stopped at the end."""
    hub = StubHub(**settings)
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()

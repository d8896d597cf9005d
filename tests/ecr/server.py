"""A local substitute for AWS and ECR: moto, and a proxy that makes a plain registry behave like ECR.

It runs in the environment of docker/requirements/ecr.txt. stand_in.py starts it; closing its input stops it.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ecr.exceptions import ImageAlreadyExistsException
from moto.ecr.models import ecr_backends
from moto.server import ThreadedMotoServer

LOGIN = "Basic " + base64.b64encode(f"AWS:{DEFAULT_ACCOUNT_ID}-auth-token".encode()).decode()
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host"}


class Ecr(BaseHTTPRequestHandler):
    """The proxy: requires ECR's login, rejects pushes to unknown repositories, reports each push to moto."""

    protocol_version = "HTTP/1.1"
    registry_port = 0

    def do_GET(self):
        body = self.read_body()
        if self.headers["Authorization"] != LOGIN:
            challenge = {"WWW-Authenticate": 'Basic realm="https://ecr/",service="ecr.amazonaws.com"'}
            self.answer(401, challenge, refusal("UNAUTHORIZED", "no basic auth credentials"))
            return
        writes = self.command not in {"GET", "HEAD"}
        named = re.match(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^?]*)", self.path)
        region = self.headers["Host"].split(".")[3]
        backend = ecr_backends[DEFAULT_ACCOUNT_ID][region]
        if writes and named["name"] not in backend.repositories:
            message = f"The repository with name '{named['name']}' does not exist in the registry"
            self.answer(404, {}, refusal("NAME_UNKNOWN", message))
            return
        status, headers, content = self.forward(body)
        if writes and status == 201 and named["kind"] == "manifests":
            self.record(backend, named, body, headers["Docker-Content-Digest"])
        self.answer(status, headers, content)

    def record(self, backend, named, manifest, digest):
        try:
            backend.put_image(
                repository_name=named["name"],
                image_manifest=manifest.decode(),
                image_tag=named["reference"],
                image_manifest_mediatype=self.headers["Content-Type"],
                digest=digest,
            )
        except ImageAlreadyExistsException:
            pass  # the same image was pushed again with the same tag

    def read_body(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def forward(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.registry_port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Docker sends one Accept for each kind of manifest
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def answer(self, status, headers, body):
        length = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


for method in ("HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Ecr, f"do_{method}", Ecr.do_GET)


def refusal(code, message):
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry-port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    aws.start()
    Ecr.registry_port = options.registry_port
    front = ThreadingHTTPServer(("127.0.0.1", 443), Ecr)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    front.socket = context.wrap_socket(front.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    _, port = aws.get_host_and_port()
    sys.stdout.write(json.dumps({"endpoint": f"http://127.0.0.1:{port}"}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    front.shutdown()
    aws.stop()


if __name__ == "__main__":
    main()

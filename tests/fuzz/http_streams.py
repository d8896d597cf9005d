"""Streams of hostile requests, and what a strict reader of RFC 9112 finds in them."""

import re
from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

# Alternatives, one a line or separated by "|"; "@" stands for a number, "#" for the same in hexadecimal.
LENGTHS = [
    b"Content-Length: " + value
    for value in (
        b"+@|-@|0x#|@, @|@,@|000@|@ |\t@||@;|@ 0|'@'|\x0b@|@\0|@.0|@_0|"
        b"99999999999999999999999|18446744073709551616|"
        b"@\r\ncontent-length: 0|@\r\nContent-Length: @|@\r\n 0|%b@" % (b"0" * 5000)
    ).split(b"|")
]
LENGTHS += b"Content-Length : @| Content-Length: @|Content_Length: @|X: \nContent-Length: @".split(b"|")
CODINGS = [
    b"Transfer-Encoding: " + value
    for value in (
        b"Chunked|\tchunked |xchunked|identity|chunked, identity|identity, chunked|gzip, chunked||"
        b"chunked;q=1|'chunked'|\x0bchunked|chunked\0|chunked,|,chunked|\r\n chunked|\xffchunked|chunke|"
        b"chunked\r\nTransfer-Encoding: chunked"
    ).split(b"|")
]
CODINGS += [
    line + b": chunked"
    for line in (
        b"Transfer-Encoding | Transfer-Encoding|Transfer_Encoding|X: y\nTransfer-Encoding|"
        b"X: y\rTransfer-Encoding|X:\0Transfer-Encoding|X: y\r\r\nTransfer-Encoding"
    ).split(b"|")
]
OTHERS = (
    b"Connection: close|Connection: keep-alive|Connection: Upgrade\r\nUpgrade: h2c|Expect: 100-continue|"
    b"Connection: upgrade\r\nUpgrade: websocket|Expect: 200|X: \0|X: \xff\xfe|X: a\r\n b|X: a\rb|X: a\nB: c|"
    b"Host: b|SCRIPT_NAME: /a|X Y: a|X : a|: a|\xff: a|X: %b" % (b"x" * 70_000)
).split(b"|")
SIZES = b'0x#|+#|# | #|-#|#;a=b|#;a="b;c"|#;|000#|#g|1000000000000000#|ffffffffffffffff|#;a\n|#\n||#;\0'
TARGETS = b"http://a/t@|//t@|/%ff%00t@|*|a:80|/\xc3\xa9t@|/t@?\xff|/t@?a=%zz|/ t@||/t@#a|/t@/../x"
METHODS = b"post|get|CONNECT|OPTIONS|PRI|BREW|POST\t| GET|G\0T|DELETE"
VERSIONS = b"HTTP/1.0|HTTP/1.0|HTTP/2.0|HTTP/9.9|http/1.1|HTTP/1.1 |HTTP/1.10|RTSP/1.0|"
TRAILERS = [b"X-Sum: 1\r\n", b"Content-Length: 9\r\n", SMUGGLED[:24]]
PIECES = b"|\r|\n|\r\n| |\0|\xff|:|0|\t|\r\n\r\n|GET |;|,".split(b"|")


def make_stream(source, number):
    """Return the requests of a connection; the last one ends it."""
    parts = [make_request(source, number * 10 + turn) for turn in range(source.randrange(1, 6))]
    stream = bytearray(b"".join(parts))
    for _ in range(source.choice([0, 0, 0, 0, 0, 1, 2])):
        at = source.randrange(len(stream))
        stream[at : at + source.choice([0, 1, 1, 2])] = source.choice(PIECES)
    body = b"[%d]" % (number * 10 + 9)
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close"
    return bytes(stream) + b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body), len(parts) + 1


def make_request(source, token):
    """Return one request, plain in about half of all cases; its answer shows `token`."""

    def pick(chance, alternatives, otherwise, length=0):
        if source.random() >= chance:
            return otherwise
        texts = alternatives.split(b"|") if isinstance(alternatives, bytes) else alternatives
        return source.choice(texts).replace(b"@", b"%d" % (length or token)).replace(b"#", b"%x" % length)

    method, target = b"POST", b"/invocations"
    body = pick(0.1, [SMUGGLED, b"0\r\n\r\n" + SMUGGLED], b"[%d]" % token)
    if source.random() < 0.3:
        method, target, body = source.choice([b"GET", b"HEAD"]), pick(0.7, b"/t@", b"/ping"), b""
    framing, size = b"Content-Length: %d" % len(body), len(body)
    if source.random() < 0.4:
        framing = b"Transfer-Encoding: chunked" + pick(
            0.1, b"\r\nContent-Length: @|\r\nContent-Length: 4", b"", size
        )
        width, chunks = source.choice([1, 1, 2, size or 1]), []
        for piece in [*(body[at : at + width] for at in range(0, size, width)), b""]:
            chunks += [pick(0.03, SIZES, b"%x" % len(piece), len(piece)), b"\r\n", piece]
            chunks += [
                pick(0 if piece else 0.2, [b"X-Sum: 1\r\n", b"Content-Length: 9\r\n", SMUGGLED[:24]], b"")
            ]
            chunks += [pick(0.02, b"|\n|\r|X\r\n|\r\n\r\n", b"\r\n")]
        body = b"".join(chunks)
    hostile = pick(1, LENGTHS + CODINGS, b"", len(body))
    framing = pick(0.25, [hostile, framing + b"\r\n" + hostile, hostile + b"\r\n" + framing], framing)
    lines = [b"Host: a", b"Content-Type: application/json", framing, pick(0.1, OTHERS, b"")]
    if not body and source.random() < 0.5:
        lines.remove(framing)
    lines = list(filter(None, lines))
    source.shuffle(lines)
    words = pick(0.04, METHODS, method), pick(0.05, TARGETS, target), pick(0.04, VERSIONS, b"HTTP/1.1")
    end = pick(0.02, b"\n|\r|\r\n ", b"\r\n")
    tail = pick(0.03, [SMUGGLED, b"\r\n", b"x", b"0\r\n\r\n"], b"")
    return end.join([b" ".join(words), *lines, b"", b""]) + body + tail


@dataclass
class Request:
    """What a strict reader finds. One that is not plain may be refused, and the connection closed."""

    method: bytes = b""
    target: bytes = b""
    body: bytes = b""
    is_plain: bool = True
    may_end: bool = False  # the connection
    must_end: bool = False
    is_json: bool = False
    is_whole: bool = False


class BrokenError(Exception):
    """The stream cannot be read on from here."""


def read_requests(stream):
    """Return the requests that a strict reader finds, and whether all is whole, broken or unfinished."""
    requests, at = [], 0
    try:
        while at < len(stream) and not (requests and requests[-1].must_end):
            begin = at
            while stream.startswith((b"\r\n", b"\n"), at):
                at = stream.index(b"\n", at) + 1
            if at == len(stream):
                break
            request = Request(is_plain=stream[begin:at] in {b"", b"\r\n"})
            fields, at = read_head(request, stream, at)
            requests.append(request)
            at = read_body(request, fields, stream, at)
            request.is_whole = True
    except BrokenError:
        return requests, "broken"
    except EOFError:
        return requests, "unfinished"
    return requests, "whole"


def read_line(request, stream, at, *, strict=False):
    """Return a line and where the next begins. A bare LF may end a line of a head, none among chunks."""
    end = stream.find(b"\n", at)
    if end < 0:
        raise EOFError
    line = stream[at:end]
    is_clean = line.endswith(b"\r") and not re.search(rb"[\r\0]", line[:-1])
    if strict and not is_clean:
        raise BrokenError
    request.is_plain &= is_clean
    return line.removesuffix(b"\r").replace(b"\0", b" "), end + 1


def read_fields(request, stream, at):
    """Return header fields or trailers, by lower-case name."""
    fields, name = {}, None
    while True:
        line, at = read_line(request, stream, at)
        if not line:
            return fields, at
        if line[:1] in b" \t":  # a folded line, or one to be ignored
            request.is_plain = False
            if name is not None:
                fields[name][-1] += b" " + line.strip(b" \t")
            continue
        name, colon, value = line.partition(b":")
        if not colon or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise BrokenError
        request.is_plain &= not re.search(rb"[\0-\x08\n-\x1f\x7f]", value) and len(line) < 60_000
        name = name.lower()
        fields.setdefault(name, []).append(value.strip(b" \t"))


def read_head(request, stream, at):
    """Return the header fields of a request and where its body begins."""
    line, at = read_line(request, stream, at)
    words = line.split()
    if len(words) not in {2, 3}:
        raise BrokenError
    request.method, request.target, version = [*words, b""][:3]
    request.is_plain &= line == b" ".join(words) and version in {b"HTTP/1.0", b"HTTP/1.1"}
    request.is_plain &= bool(re.fullmatch(rb"/[!-~]*", request.target)) and b"#" not in request.target
    request.is_plain &= request.method in {b"GET", b"HEAD", b"POST", b"OPTIONS", b"DELETE"}
    fields, at = read_fields(request, stream, at)
    request.is_plain &= len(fields.get(b"host", [])) == 1
    request.is_plain &= fields.get(b"expect", [b"100-continue"]) == [b"100-continue"]
    request.is_plain &= b"upgrade" not in fields
    options = b",".join(fields.get(b"connection", [])).lower()
    request.must_end = b"close" in options or version in {b"HTTP/1.0", b""} or request.method == b"CONNECT"
    request.may_end = version != b"HTTP/1.1" or b"upgrade" in fields
    request.is_json = fields.get(b"content-type") == [b"application/json"]
    if b"transfer-encoding" in fields and (version == b"HTTP/1.0" or b"content-length" in fields):
        request.is_plain, request.must_end = False, True
    return fields, at


def read_body(request, fields, stream, at):
    """Read the body of a request; return where the next one begins."""
    if b"transfer-encoding" in fields:
        codings = [name.strip().lower() for name in b",".join(fields[b"transfer-encoding"]).split(b",")]
        request.is_plain &= codings == [b"chunked"]
        if [name for name in codings if name][-1:] != [b"chunked"]:
            raise BrokenError
        return read_chunks(request, stream, at)
    lengths = set(b",".join(fields.get(b"content-length", [b"0"])).replace(b" ", b"").split(b","))
    text = lengths.pop()
    if lengths or not re.fullmatch(rb"[0-9]+", text) or len(text.lstrip(b"0")) > 20:
        raise BrokenError
    request.is_plain &= fields.get(b"content-length", [text]) == [text]
    return read_bytes(request, int(text[-25:]), stream, at)


def read_bytes(request, length, stream, at):
    request.body += stream[at : at + length]
    if at + length > len(stream):
        raise EOFError
    return at + length


def read_chunks(request, stream, at):
    """Read a chunked body and its trailers."""
    while True:
        line, at = read_line(request, stream, at, strict=True)
        size, extension = re.fullmatch(rb"([0-9A-Fa-f]*)(.*)", line, re.DOTALL).groups()
        if not size or len(size.lstrip(b"0")) > 16 or extension.strip(b" \t")[:1] not in {b"", b";"}:
            raise BrokenError
        request.is_plain &= bool(re.fullmatch(rb'(;\w+(=(\w+|"[^"\\]*"))?)*', extension))
        if not int(size, 16):
            trailers, at = read_fields(request, stream, at)
            request.is_plain &= not trailers.keys() & {b"content-length", b"transfer-encoding"}
            return at
        at = read_bytes(request, int(size, 16), stream, at)
        if not stream.startswith(b"\r\n", at):
            raise BrokenError if stream[at : at + 2] not in {b"", b"\r"} else EOFError
        at += 2

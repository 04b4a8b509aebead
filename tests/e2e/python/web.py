"""gRPC-Web over HTTP/1.1 without a client library, so that every header is checked.

The second argument is a user with memories.
"""

import base64
import http.client
import sys

from harness import ADDRESS, DEADLINE_SECONDS, PLAN, answer_of, check, new_user, outline, pb, run_checks

SEEDED_USER = sys.argv[2]
ORIGIN = "http://localhost:5173"
CHAT = "/agent.v1.AgentService/StreamChat"
RETRIEVE = "/agent.v1.AgentService/RetrieveMemory"
BINARY = "application/grpc-web+proto"
TEXT = "application/grpc-web-text"
STATUS_HEADERS = {"grpc-status", "grpc-message", "grpc-status-details-bin"}
TRAILER_FLAG = 0x80


def send(method, path, headers, body=b""):
    connection = http.client.HTTPConnection(ADDRESS, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, body, {"Origin": ORIGIN, **headers})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def decode_text(body):
    """Decodes base64 in groups of four characters, because each piece of a text stream has its own padding."""
    return b"".join(base64.b64decode(body[at : at + 4]) for at in range(0, len(body), 4))


def split(body):
    """Splits a gRPC-Web body into messages and trailers."""
    messages, trailers = [], {}
    while body:
        flag, length = body[0], int.from_bytes(body[1:5], "big")
        payload, body = body[5 : 5 + length], body[5 + length :]
        assert len(payload) == length, "truncated frame"
        if flag & TRAILER_FLAG:
            trailers = dict(line.split(":", 1) for line in payload.decode().strip().split("\r\n"))
        else:
            messages.append(payload)
    return messages, {name.lower(): value.strip() for name, value in trailers.items()}


def call(path, request, content_type, **headers):
    """Makes a call; returns its messages and its status, from trailers or headers."""
    payload = request.SerializeToString()
    body = b"\0" + len(payload).to_bytes(4, "big") + payload
    if content_type == TEXT:
        body = base64.b64encode(body)
    headers |= {"Content-Type": content_type, "Accept": content_type, "X-Grpc-Web": "1"}
    response, body = send("POST", path, headers, body)
    assert response.status == 200, (response.status, body)
    assert response.getheader("content-type", "").startswith(content_type), response.getheaders()
    assert response.getheader("access-control-allow-origin") in (ORIGIN, "*"), response.getheaders()
    exposed = response.getheader("access-control-expose-headers", "").lower().replace(" ", "").split(",")
    assert STATUS_HEADERS.issubset(exposed), exposed
    messages, trailers = split(decode_text(body) if content_type == TEXT else body)
    return messages, trailers or {name.lower(): value for name, value in response.getheaders()}


for content_type in BINARY, TEXT:

    @check(f"chat_streams_as_{content_type}")
    def _(content_type=content_type):
        request = pb.ChatRequest(user_id=SEEDED_USER, message=PLAN)
        messages, status = call(CHAT, request, content_type)
        frames = [pb.ChatResponse.FromString(message) for message in messages]
        assert status["grpc-status"] == "0", status
        assert outline(frames)[:4] == ["THINKING", "SEARCHING", "citations", "GENERATING"], outline(frames)
        assert answer_of(frames)

    @check(f"retrieve_works_as_{content_type}")
    def _(content_type=content_type):
        messages, status = call(RETRIEVE, pb.MemoryQuery(user_id=SEEDED_USER, query_text=PLAN), content_type)
        assert status["grpc-status"] == "0", status
        assert pb.MemoryResult.FromString(messages[0]).items

    @check(f"refusal_names_field_as_{content_type}")
    def _(content_type=content_type):
        request = pb.ChatRequest(user_id=new_user(), message="hi", session_id="a/b")
        messages, status = call(CHAT, request, content_type)
        assert not messages and status["grpc-status"] == "3" and "session_id" in status["grpc-message"], status
        assert status["grpc-status-details-bin"], status


@check("user_id_header_selects_user")
def _():
    messages, status = call(RETRIEVE, pb.MemoryQuery(query_text=PLAN), BINARY, **{"user-id": SEEDED_USER})
    assert status["grpc-status"] == "0" and pb.MemoryResult.FromString(messages[0]).items, status


@check("cors_preflight_is_allowed")
def _():
    requested = {"content-type", "x-grpc-web", "user-id", "authorization"}
    headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(sorted(requested)),
    }
    response, _ = send("OPTIONS", CHAT, headers)
    assert response.status in (200, 204), response.status
    assert response.getheader("access-control-allow-origin") in (ORIGIN, "*"), response.getheaders()
    allowed = response.getheader("access-control-allow-headers", "").lower().replace(" ", "").split(",")
    # `*` does not cover authorization, so each header must be listed.
    assert requested.issubset(allowed), allowed
    methods = response.getheader("access-control-allow-methods", "").upper().replace(" ", "").split(",")
    # POST is a CORS-safelisted method and need not be listed.
    assert not methods[0] or {"POST", "*"} & set(methods), methods


run_checks()

"""What the server refuses, and that a refusal names the field: clients show or log just that."""

import grpc
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from harness import (
    DEADLINE_SECONDS,
    agent,
    answer_of,
    channel,
    chat,
    check,
    new_user,
    pb,
    refused,
    retrieve,
    run_checks,
)

MEGABYTE = 1_000_000


def assert_names(error, field):
    """Asserts that the text and the BadRequest detail of the refusal bear the field as the proto spells it."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    assert field in error.details(), error.details()
    violations = BadRequest()
    assert any(detail.Unpack(violations) for detail in rpc_status.from_call(error).details), "no BadRequest detail"
    named = [violation.field for violation in violations.field_violations]
    assert any(name == field or name.endswith(f".{field}") for name in named), named


def stream(**fields):
    fields.setdefault("user_id", new_user())
    return agent.StreamChat(pb.ChatRequest(**fields), timeout=DEADLINE_SECONDS)


BAD_CHATS = {
    "a request without input": ("input", {}),
    "a role that does not exist": ("history[0].role", {"history": [pb.ChatMessage(role="robot", content="hi")]}),
    "a temperature above 2": ("temperature", {"config": pb.ChatConfig(temperature=3)}),
    "max_tokens of 0, where the client says so": ("max_tokens", {"config": pb.ChatConfig(max_tokens=0)}),
    "a slash in session_id": ("session_id", {"session_id": "a/b"}),
    "a control character in request_id": ("request_id", {"request_id": "a\nb"}),
    "NUL in the message": ("message", {"message": "a\0b"}),
    "a message above 100 kB": ("message", {"message": "a" * 150_000}),
    "a message that fits the transport, not the contract": ("message", {"message": "a" * 45 * MEGABYTE}),
}

for what, (field, fields) in BAD_CHATS.items():

    @check(f"refuses {what} and names {field}")
    def _(field=field, fields=fields):
        if field != "input":
            fields = {"message": "hi", **fields}
        assert_names(refused(stream, **fields), field)


BAD_QUERIES = {
    "a blank query_text": ("query_text", {"query_text": " "}),
    "a negative limit": ("limit", {"limit": -1}),
    "a min_score above 1": ("min_score", {"min_score": 1.5}),
    "a hybrid_alpha above 1": ("hybrid_alpha", {"hybrid_alpha": 1.5}),
}

for what, (field, fields) in BAD_QUERIES.items():

    @check(f"refuses {what} and names {field}")
    def _(field=field, fields=fields):
        query = {"user_id": new_user(), "query_text": "x", **fields}
        assert_names(refused(retrieve, **query), field)


@check("refuses a user_id that differs from the metadata and names user_id")
def _():
    error = refused(chat, user_id=new_user(), metadata=[("user-id", new_user())])
    assert_names(error, "user_id")


@check("names the field in Chinese too")
def _():
    profile = pb.UserProfile(language="zh-CN")
    config = pb.ChatConfig(temperature=3)
    assert_names(refused(stream, message="你好", user_profile=profile, config=config), "temperature")


@check("a message of 60 MB is RESOURCE_EXHAUSTED")
def _():
    error = refused(stream, message="a" * 60 * MEGABYTE)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error


@check("an unknown call is UNIMPLEMENTED")
def _():
    unknown = channel.unary_unary("/agent.v1.AgentService/Unknown")
    error = refused(unknown, b"", timeout=DEADLINE_SECONDS)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


@check("bytes that are no message end with a status")
def _():
    broken = channel.unary_unary("/agent.v1.AgentService/RetrieveMemory")
    error = refused(broken, b"\xff\xff\xff", timeout=DEADLINE_SECONDS)
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), error


@check("the server still answers after all of this")
def _():
    assert answer_of(chat())


run_checks()

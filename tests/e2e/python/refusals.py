"""Refused requests. The status names the invalid field, which clients display or log."""

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
    """Asserts that message and BadRequest detail name the field as spelled in the proto."""
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
    "missing_input": ("input", {}),
    "unknown_role": ("history[0].role", {"history": [pb.ChatMessage(role="robot", content="hi")]}),
    "temperature_above_2": ("temperature", {"config": pb.ChatConfig(temperature=3)}),
    "explicit_max_tokens_0": ("max_tokens", {"config": pb.ChatConfig(max_tokens=0)}),
    "slash_in_session_id": ("session_id", {"session_id": "a/b"}),
    "control_character_in_request_id": ("request_id", {"request_id": "a\nb"}),
    "nul_in_message": ("message", {"message": "a\0b"}),
    "message_above_100_kb": ("message", {"message": "a" * 150_000}),
    "message_within_transport_limit_only": ("message", {"message": "a" * 31 * MEGABYTE}),
}

for case, (field, fields) in BAD_CHATS.items():

    @check(f"{case}_is_refused_naming_{field}")
    def _(field=field, fields=fields):
        if field != "input":
            fields = {"message": "hi", **fields}
        assert_names(refused(stream, **fields), field)


BAD_QUERIES = {
    "blank_query_text": ("query_text", {"query_text": " "}),
    "negative_limit": ("limit", {"limit": -1}),
    "min_score_above_1": ("min_score", {"min_score": 1.5}),
    "hybrid_alpha_above_1": ("hybrid_alpha", {"hybrid_alpha": 1.5}),
}

for case, (field, fields) in BAD_QUERIES.items():

    @check(f"{case}_is_refused_naming_{field}")
    def _(field=field, fields=fields):
        query = {"user_id": new_user(), "query_text": "x", **fields}
        assert_names(refused(retrieve, **query), field)


@check("user_id_other_than_metadata_is_refused")
def _():
    error = refused(chat, user_id=new_user(), metadata=[("user-id", new_user())])
    assert_names(error, "user_id")


@check("chinese_refusal_names_field")
def _():
    profile = pb.UserProfile(language="zh-CN")
    config = pb.ChatConfig(temperature=3)
    assert_names(refused(stream, message="你好", user_profile=profile, config=config), "temperature")


@check("message_of_60_mb_is_resource_exhausted")
def _():
    error = refused(stream, message="a" * 60 * MEGABYTE)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error


@check("unknown_rpc_is_unimplemented")
def _():
    unknown = channel.unary_unary("/agent.v1.AgentService/Unknown")
    error = refused(unknown, b"", timeout=DEADLINE_SECONDS)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


@check("malformed_message_ends_with_status")
def _():
    broken = channel.unary_unary("/agent.v1.AgentService/RetrieveMemory")
    error = refused(broken, b"\xff\xff\xff", timeout=DEADLINE_SECONDS)
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), error


@check("server_still_answers")
def _():
    assert answer_of(chat())


run_checks()

"""A client of the first generation, whose stubs have neither citations nor later fields.

The second argument is a user with memories, because such a client cannot write any.
"""

import sys

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet
from harness import answer_of, chat, check, new_user, outline, pb, refused, retrieve, run_checks

SEEDED_USER = sys.argv[2]
CITATIONS = 11
SESSION_ID = 20


def unknown_numbers(frame):
    return {field.field_number for field in UnknownFieldSet(frame)}


@check("stubs_are_of_old_generation")
def _():
    assert "citations" not in pb.ChatResponse.DESCRIPTOR.fields_by_name
    assert not pb.MemoryQuery.DESCRIPTOR.fields_by_name["hybrid_alpha"].has_presence


@check("old_client_skips_unknown_payload")
def _():
    frames = chat(user_id=SEEDED_USER)
    deltas = outline(frames).count("delta")
    expected = ["THINKING", "SEARCHING", None, "GENERATING", *["delta"] * deltas, "usage", "full_text"]
    assert outline(frames) == expected, outline(frames)
    assert CITATIONS in unknown_numbers(frames[2])
    assert answer_of(frames)


@check("old_client_skips_unknown_fields")
def _():
    assert all(SESSION_ID in unknown_numbers(frame) for frame in chat())


@check("old_client_zeros_mean_unset")
def _():
    assert answer_of(chat(config=pb.ChatConfig(temperature=0, max_tokens=0)))


@check("old_client_retrieves_default_and_lexical")
def _():
    for alpha in 0, 0.0005:
        reply = retrieve(user_id=SEEDED_USER, query_text="高数复习计划", hybrid_alpha=alpha)
        assert reply.items and reply.total_found >= 1 and 0 < reply.items[0].score <= 1, reply


@check("old_client_gets_same_refusal")
def _():
    error = refused(chat, user_id=new_user(), metadata=[("user-id", new_user())])
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "user_id" in error.details(), error


run_checks()

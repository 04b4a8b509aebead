"""StreamChat, with a current client."""

import time

import grpc
import regex
from harness import answer_of, chat, check, label, new_user, outline, pb, run_checks, start_chat

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
MAX_DELTA_GRAPHEMES = 10


@check("frames_arrive_in_contract_order")
def _():
    frames = chat()
    deltas = outline(frames).count("delta")
    expected = ["THINKING", "SEARCHING", "GENERATING", *["delta"] * deltas, "usage", "full_text"]
    assert outline(frames) == expected, outline(frames)
    assert answer_of(frames)


@check("recall_off_skips_retrieval")
def _():
    frames = chat(metadata=[("x-recall", "off")])
    assert outline(frames)[:3] == ["THINKING", "GENERATING", "delta"], outline(frames)


@check("deltas_are_a_few_characters")
def _():
    deltas = [frame.delta for frame in chat() if label(frame) == "delta"]
    longest = max(deltas, key=lambda delta: len(regex.findall(r"\X", delta)))
    assert len(deltas) > 1 and len(regex.findall(r"\X", longest)) <= MAX_DELTA_GRAPHEMES, longest


@check("usage_totals_add_up")
def _():
    (usage,) = [frame.usage for frame in chat() if label(frame) == "usage"]
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


@check("response_ids_have_fixed_width_and_ascend")
def _():
    ids = [frame.response_id.encode() for frame in chat()]
    assert len({len(id) for id in ids}) == 1, ids
    assert ids == sorted(set(ids)), ids


@check("every_frame_has_ids_and_times")
def _():
    before = int(time.time())
    frames = chat(request_id="request-1")
    for frame in frames:
        assert frame.request_id == "request-1" and frame.session_id and frame.trace_id, frame
        assert before <= frame.created_at <= time.time() + 1, frame
        assert frame.created_at == frame.event_time.seconds, frame
    assert len({(frame.session_id, frame.trace_id) for frame in frames}) == 1


@check("empty_request_id_is_created")
def _():
    (request_id,) = {frame.request_id for frame in chat()}
    assert request_id


@check("session_continues_across_calls")
def _():
    user = new_user()
    session = chat(user_id=user)[0].session_id
    again = chat("然后呢?", user_id=user, session_id=session)
    assert {frame.session_id for frame in again} == {session}
    assert answer_of(again)


@check("trace_id_comes_from_traceparent")
def _():
    frames = chat(metadata=[("traceparent", TRACEPARENT), ("x-trace-id", "from-the-gateway")])
    assert {frame.trace_id for frame in frames} == {TRACE_ID}, frames[0]


@check("trace_id_falls_back_to_x_trace_id")
def _():
    frames = chat(metadata=[("x-trace-id", "from-the-gateway")])
    assert {frame.trace_id for frame in frames} == {"from-the-gateway"}, frames[0]


@check("empty_user_id_comes_from_metadata")
def _():
    assert answer_of(chat(user_id="", metadata=[("user-id", new_user())]))


@check("history_profile_context_config_are_accepted")
def _():
    request = pb.ChatRequest(
        user_profile=pb.UserProfile(nickname="小明", timezone="Asia/Shanghai", language="zh-CN"),
        history=[pb.ChatMessage(role="user", content="你好"), pb.ChatMessage(role="assistant", content="你好!")],
        config=pb.ChatConfig(temperature=0, max_tokens=256),
        chat_mode="unknown-mode",
    )
    request.user_profile.preferences["concise_mode"] = "true"
    request.extra_context.update({"exam": "高数", "days": 14})
    fields = {field.name: value for field, value in request.ListFields()}
    assert answer_of(chat(**fields))


@check("cancelled_stream_ends_and_next_call_completes")
def _():
    user = new_user()
    call = start_chat(user_id=user)
    assert any(label(frame) == "delta" for frame in call)
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED, call.code()
    assert answer_of(chat(user_id=user))


run_checks()

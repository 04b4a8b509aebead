"""Test harness: registers and runs checks, and wraps the calls.

Each script takes the server's address as its argument. The stubs come from PYTHONPATH, so that the same code works as a current
client and as one of the old generation.
"""

import sys
import traceback
import uuid

import agent_service_pb2 as pb
import agent_service_pb2_grpc as rpc
import grpc

ADDRESS = sys.argv[1]
# Bounds every call, so that a hanging server fails a check.
DEADLINE_SECONDS = 60
PLAN = "帮我制定高数复习计划"

# No client-side limit: the server's limit is under test.
channel = grpc.insecure_channel(ADDRESS, options=[("grpc.max_send_message_length", -1)])
agent = rpc.AgentServiceStub(channel)
_checks = []


def check(name):
    """Registers a check."""

    def register(function):
        _checks.append((name, function))
        return function

    return register


def run_checks():
    failed = 0
    for name, function in _checks:
        try:
            function()
            print(f"ok  {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}", flush=True)
            traceback.print_exc()
    sys.exit(1 if failed else 0)


def new_user(prefix="user"):
    return f"{prefix}-{uuid.uuid4()}"


def start_chat(message=PLAN, metadata=(), **fields):
    fields.setdefault("user_id", new_user())
    request = pb.ChatRequest(message=message, **fields)
    return agent.StreamChat(request, metadata=metadata, timeout=DEADLINE_SECONDS)


def chat(message=PLAN, metadata=(), **fields):
    return list(start_chat(message, metadata, **fields))


def retrieve(metadata=(), **fields):
    return agent.RetrieveMemory(pb.MemoryQuery(**fields), metadata=metadata, timeout=DEADLINE_SECONDS)


def label(frame):
    """The name of a frame's payload, or the state of a status update."""
    payload = frame.WhichOneof("content")
    if payload == "status_update":
        return pb.AgentStatus.State.Name(frame.status_update.state)
    return payload


def outline(frames):
    return [label(frame) for frame in frames]


def answer_of(frames):
    """Asserts that the frames end with full_text and STOP, and returns the text."""
    deltas = [frame.delta for frame in frames if label(frame) == "delta"]
    assert deltas and "".join(deltas) == frames[-1].full_text, outline(frames)
    reasons = [frame.finish_reason for frame in frames]
    assert reasons == [pb.NULL] * (len(frames) - 1) + [pb.STOP], reasons
    return frames[-1].full_text


def refused(call, *args, **kwargs):
    """Returns the error of a call that must be refused."""
    try:
        reply = call(*args, **kwargs)
        # A stream raises its status during iteration.
        frames = list(reply) if hasattr(reply, "__iter__") else reply
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"answered instead of refused: {str(frames)[:400]}")

"""What every Python check shares: a line of output per check, a channel, and a way to read a stream.

Each script takes the server's address as its argument. The stubs come from PYTHONPATH, so that the same
code speaks for a current client or for one of the old generation.
"""

import sys
import traceback
import uuid

import agent_service_pb2 as pb
import agent_service_pb2_grpc as rpc
import grpc

ADDRESS = sys.argv[1]
# Bounds every call: a server that hangs is a failed check, not a hanging run.
DEADLINE_SECONDS = 60
PLAN = "帮我制定高数复习计划"

# No limit on what is sent, because the server's own limit is what is checked.
channel = grpc.insecure_channel(ADDRESS, options=[("grpc.max_send_message_length", -1)])
agent = rpc.AgentServiceStub(channel)
_checks = []


def check(sentence):
    """Registers a function under the sentence that it proves."""

    def register(function):
        _checks.append((sentence, function))
        return function

    return register


def run_checks():
    failed = 0
    for sentence, function in _checks:
        try:
            function()
            print(f"ok  {sentence}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {sentence}", flush=True)
            traceback.print_exc()
    sys.exit(1 if failed else 0)


def new_user(name="user"):
    """A user whom the server has never seen."""
    return f"{name}-{uuid.uuid4()}"


def start_chat(message=PLAN, metadata=(), **fields):
    fields.setdefault("user_id", new_user())
    request = pb.ChatRequest(message=message, **fields)
    return agent.StreamChat(request, metadata=metadata, timeout=DEADLINE_SECONDS)


def chat(message=PLAN, metadata=(), **fields):
    return list(start_chat(message, metadata, **fields))


def retrieve(metadata=(), **fields):
    return agent.RetrieveMemory(pb.MemoryQuery(**fields), metadata=metadata, timeout=DEADLINE_SECONDS)


def label(frame):
    """The payload of a frame; for a status the state that it tells."""
    payload = frame.WhichOneof("content")
    if payload == "status_update":
        return pb.AgentStatus.State.Name(frame.status_update.state)
    return payload


def outline(frames):
    return [label(frame) for frame in frames]


def answer_of(frames):
    """Asserts how an answer must end, and returns its text."""
    deltas = [frame.delta for frame in frames if label(frame) == "delta"]
    assert deltas and "".join(deltas) == frames[-1].full_text, outline(frames)
    reasons = [frame.finish_reason for frame in frames]
    assert reasons == [pb.NULL] * (len(frames) - 1) + [pb.STOP], reasons
    return frames[-1].full_text


def refused(call, *args, **kwargs):
    """The error with which a call ends; a call that is answered fails the check."""
    try:
        reply = call(*args, **kwargs)
        # Only iterating a stream brings out its status.
        frames = list(reply) if hasattr(reply, "__iter__") else reply
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"answered instead of refused: {str(frames)[:400]}")

"""Asks the agent service a question and prints the answer as it streams.

    PYTHONPATH=gen/python python3 examples/python/chat.py [--cut-after N] [--stop-after N] [QUESTION]

Environment: AGENT_URL (service address), AGENT_USER (user id), AGENT_TOKEN (bearer token).
"""

import argparse
import json
import os
import sys
import time
import uuid
from urllib.parse import urlsplit

import agent_service_pb2 as pb
import agent_service_pb2_grpc as rpc
import conversation_service_pb2 as conversation_pb
import conversation_service_pb2_grpc as conversation_rpc
import grpc
import memory_service_pb2 as memory_pb
import memory_service_pb2_grpc as memory_rpc

# gRPC's built-in retries, which apply before the first frame. gRPC waits as long as the server's
# grpc-retry-pushback-ms says, and does not retry if that is -1.
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "agent.v1.AgentService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}
# A call cancelled by the client itself ends with CANCELLED.
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)


def connect(url):
    """Connects with TLS if the scheme is https."""
    address = urlsplit(url)
    options = [("grpc.service_config", json.dumps(RETRIES))]
    if address.scheme == "https":
        return grpc.secure_channel(address.netloc, grpc.ssl_channel_credentials(), options)
    return grpc.insecure_channel(address.netloc, options)


def metadata():
    """Metadata of every call. With a token, the user must be its subject."""
    yield "user-id", os.environ.get("AGENT_USER", "ann")
    if token := os.environ.get("AGENT_TOKEN"):
        yield "authorization", f"Bearer {token}"


def remember(channel):
    """Stores a memory; idempotent by id."""
    memory = memory_pb.MemoryInput(id="exam", content="The calculus exam is on the ninth of June")
    request = memory_pb.AddMemoriesRequest(memories=[memory])
    memory_rpc.MemoryServiceStub(channel).AddMemories(request, metadata=tuple(metadata()), timeout=10)


def ask(channel, question, options):
    """Prints one answer to its end, resuming after lost connections; returns the last frame."""
    # The request_id makes retries idempotent.
    request = pb.ChatRequest(request_id=str(uuid.uuid4()), message=question)
    last = None
    for attempt in range(1, 6):
        try:
            for last in read(channel, request, last, options):
                show(last)
        except grpc.RpcError as error:
            if last is None or error.code() not in LOST or attempt == 5:
                raise
        if last.finish_reason != pb.NULL:
            return last
        log("[connection lost; resuming]")
        time.sleep(attempt * 0.2)


def read(channel, request, last, options):
    """Yields the frames after the last received one."""
    resume = [("x-last-response-id", last.response_id)] if last else []
    call = rpc.AgentServiceStub(channel).StreamChat(request, metadata=(*metadata(), *resume), timeout=300)
    for count, frame in enumerate(call, start=1):
        yield frame
        if last is None and count == options.cut_after:
            call.cancel()
        if last is None and count == options.stop_after:
            stop = conversation_pb.CancelTurnRequest(session_id=frame.session_id, request_id=frame.request_id)
            conversation_rpc.ConversationServiceStub(channel).CancelTurn(stop, metadata=tuple(metadata()), timeout=10)


def show(frame):
    """Prints the answer to standard output, and everything else to standard error."""
    match frame.WhichOneof("content"):
        case "status_update":
            log(f"[{pb.AgentStatus.State.Name(frame.status_update.state)}] {frame.status_update.details}")
        case "citations":
            for citation in frame.citations.citations:
                log(f"  {citation.score:.2f}  {citation.content}")
        case "delta":
            print(frame.delta, end="", flush=True)
        case "usage":
            print(flush=True)
            log(f"[{frame.usage.total_tokens} tokens]")


def log(line):
    print(line, file=sys.stderr)


def is_retryable(error):
    """Whether a later attempt may succeed; a pushback of -1 says that it will not."""
    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "")
    return error.code() in RETRYABLE and not pushback.startswith("-")


def hint(retryable):
    return " (retryable)" if retryable else ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="Make me a calculus review plan")
    parser.add_argument("--cut-after", type=int, metavar="N", help="drop the connection after N frames, and resume")
    parser.add_argument("--stop-after", type=int, metavar="N", help="cancel the answer after N frames")
    options = parser.parse_args()
    with connect(os.environ.get("AGENT_URL", "http://127.0.0.1:50051")) as channel:
        try:
            remember(channel)
            last = ask(channel, options.question, options)
        except grpc.RpcError as error:
            # Refused before the first frame: a gRPC status.
            sys.exit(f"refused: {error.code().name}: {error.details()}{hint(is_retryable(error))}")
    if last.WhichOneof("content") == "error":
        # Failed after the first frame: an error frame.
        sys.exit(f"failed: {last.error.code}: {last.error.message}{hint(last.error.retryable)}")


main()

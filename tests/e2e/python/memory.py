"""MemoryService and RetrieveMemory, with a current client."""

import uuid
from datetime import datetime, timedelta, timezone

import grpc
import memory_service_pb2 as memory_pb
import memory_service_pb2_grpc as memory_rpc
from harness import (
    DEADLINE_SECONDS,
    answer_of,
    channel,
    chat,
    check,
    label,
    new_user,
    outline,
    pb,
    refused,
    retrieve,
    run_checks,
)

memory = memory_rpc.MemoryServiceStub(channel)
USER = new_user("memory")
DAY = timedelta(days=1)
FIRST = datetime(2025, 3, 1, tzinfo=timezone.utc)
NOTES = [
    memory_pb.MemoryInput(
        id=f"note-{day}", content=content, source_type=source, tags=tags, created_at=FIRST + day * DAY
    )
    for day, (content, source, tags) in enumerate(
        [
            ("高数复习计划:先极限,再导数,最后积分", "note", ["maths", "plan"]),
            ("The calculus exam is on the ninth of June", "fact", ["maths", "exam"]),
            ("My sister Anna lives in Lisbon", "fact", ["family"]),
            ("英语四级考试在十二月", "fact", ["english", "exam"]),
            ("I like green tea without sugar", "chat", []),
        ]
    )
]


def add(user, *memories):
    return memory.AddMemories(memory_pb.AddMemoriesRequest(user_id=user, memories=memories), timeout=DEADLINE_SECONDS)


def listed(user, **fields):
    return memory.ListMemories(memory_pb.ListMemoriesRequest(user_id=user, **fields), timeout=DEADLINE_SECONDS)


def delete(user, **fields):
    return memory.DeleteMemories(memory_pb.DeleteMemoriesRequest(user_id=user, **fields), timeout=DEADLINE_SECONDS)


def found(**fields):
    return {item.id for item in retrieve(user_id=USER, **fields).items}


@check("add_keeps_client_ids_in_order")
def _():
    reply = add(USER, *NOTES)
    assert list(reply.ids) == [note.id for note in NOTES], reply
    assert (reply.added, reply.unchanged) == (len(NOTES), 0), reply


@check("add_again_is_unchanged_or_replaces")
def _():
    changed = memory_pb.MemoryInput(id="note-4", content="I like black tea without sugar", source_type="chat")
    changed.created_at.CopyFrom(NOTES[4].created_at)
    reply = add(USER, *NOTES[:4], changed)
    assert (reply.added, reply.unchanged) == (1, 4), reply
    assert [record.content for record in listed(USER, page_size=1).memories] == [changed.content]


@check("add_without_id_creates_uuidv7")
def _():
    user = new_user()
    (made,) = add(user, memory_pb.MemoryInput(content="without an id")).ids
    assert uuid.UUID(made).version == 7, made
    (record,) = listed(user).memories
    assert (record.id, record.source_type) == (made, "note"), record


for alpha in None, 0.0, 0.5, 1.0:

    @check(f"retrieve_finds_memory_with_alpha_{'unset' if alpha is None else alpha}")
    def _(alpha=alpha):
        best = retrieve(user_id=USER, query_text="When is the calculus exam?", hybrid_alpha=alpha).items[0]
        assert best.id == "note-1" and best.content == NOTES[1].content, best
        assert 0 < best.score <= 1 and best.created_at == NOTES[1].created_at, best
        assert best.metadata["source_type"] == "fact", best
        assert set(best.metadata["tags"].split(",")) == {"maths", "exam"}, best


@check("retrieve_finds_chinese_memory")
def _():
    assert retrieve(user_id=USER, query_text="高数怎么复习?").items[0].id == "note-0"


@check("retrieve_orders_by_score_within_0_and_1")
def _():
    scores = [item.score for item in retrieve(user_id=USER, query_text="calculus exam").items]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores), scores


@check("filter_matches_all_fields")
def _():
    assert found(query_text="考试 exam", filter=pb.MemoryFilter(tags=["exam", "maths"])) == {"note-1"}
    assert found(query_text="tea exam", filter=pb.MemoryFilter(source_types=["chat"])) == {"note-4"}
    between = pb.MemoryFilter(start_time=NOTES[1].created_at, end_time=NOTES[2].created_at)
    assert found(query_text="calculus exam Anna", filter=between) == {"note-1"}


@check("limit_does_not_change_total_found")
def _():
    query = {"user_id": USER, "query_text": "考试 exam"}
    everything, first = retrieve(**query), retrieve(**query, limit=1)
    assert len(everything.items) >= 2, everything
    assert [item.id for item in first.items] == [everything.items[0].id], first
    assert first.total_found == everything.total_found == len(everything.items), first


@check("min_score_drops_lower_scores")
def _():
    query = {"user_id": USER, "query_text": "calculus exam", "hybrid_alpha": 1}
    everything = retrieve(**query)
    # Slightly below the best score, because scores are rounded to float.
    minimum = everything.items[0].score * 0.999
    reply = retrieve(**query, min_score=minimum)
    above = [item.id for item in everything.items if item.score >= minimum]
    assert [item.id for item in reply.items] == above and reply.total_found == len(above), reply


@check("answer_cites_memories")
def _():
    frames = chat(user_id=USER)
    assert outline(frames)[:4] == ["THINKING", "SEARCHING", "citations", "GENERATING"], outline(frames)
    cited = next(frame.citations.citations for frame in frames if label(frame) == "citations")
    assert "note-0" in {citation.id for citation in cited} and all(0 <= citation.score <= 1 for citation in cited)
    assert answer_of(frames)


@check("list_pages_newest_first")
def _():
    pages, token = [], ""
    while not pages or token:
        page = listed(USER, page_size=2, page_token=token)
        pages.append([record.id for record in page.memories])
        token = page.next_page_token
    assert pages == [["note-4", "note-3"], ["note-2", "note-1"], ["note-0"]], pages


@check("other_user_sees_no_memories")
def _():
    other = new_user()
    reply = retrieve(user_id=other, query_text="calculus exam")
    assert (len(reply.items), reply.total_found) == (0, 0), reply
    assert not listed(other).memories
    assert delete(other, ids=["note-0"]).deleted == 0
    assert delete(other, everything=True).deleted == 0
    assert len(listed(USER).memories) == len(NOTES)


@check("empty_user_id_comes_from_metadata")
def _():
    assert retrieve(query_text="calculus exam", metadata=[("user-id", USER)]).items


@check("empty_delete_is_refused")
def _():
    for fields in {}, {"filter": pb.MemoryFilter()}:
        assert refused(delete, USER, **fields).code() is grpc.StatusCode.INVALID_ARGUMENT, fields
    assert len(listed(USER).memories) == len(NOTES)


@check("deleted_memory_is_not_found")
def _():
    assert delete(USER, ids=["note-1", "no such id"]).deleted == 1
    assert "note-1" not in found(query_text="calculus exam")
    assert "note-1" not in {record.id for record in listed(USER).memories}


@check("delete_everything_removes_all_memories")
def _():
    assert delete(USER, everything=True).deleted == len(NOTES) - 1
    assert not listed(USER).memories
    assert retrieve(user_id=USER, query_text="calculus exam").total_found == 0


run_checks()

"""A DynamoDB emulator (moto) with the service's table.

    dynamodb.py FILE

Run by infra/dynamodb.sh. Listens on a free port, writes it to FILE when ready, and holds its data in memory. moto is less strict
than DynamoDB; shared/conversation/dynamodb/write.rs rejects what moto should.
"""

import copy
import json
import sys
import threading
from pathlib import Path

import boto3
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.table import Table
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

TABLE = json.loads((Path(__file__).resolve().parent / "dynamodb-table.json").read_text())

# Items of the current transaction by user, and copies of tables for its rollback.
_touched: dict[str, set[str]] = {}
_snapshots: dict[int, Table] = {}


def _snapshot(table: Table, memo: dict) -> Table:
    """Copies only the items of the transaction, once. moto copies the whole table for each item, to roll back."""
    if id(table) in _snapshots:
        return _snapshots[id(table)]
    snapshot = copy.copy(table)
    snapshot.items = copy.copy(table.items)
    for user, items in table.items.items():
        if user.value in _touched:
            touched = _touched[user.value]
            snapshot.items[user] = type(items)(
                (item, copy.deepcopy(value, memo) if item.value in touched else value) for item, value in items.items()
            )
    if table.stream_shard:
        # A rolled back transaction must not appear in the stream.
        snapshot.stream_shard = copy.copy(table.stream_shard)
        snapshot.stream_shard.items = list(table.stream_shard.items)
    _snapshots[id(table)] = snapshot
    return snapshot


def _transact(self: DynamoDBBackend, transact_items: list[dict]) -> None:
    for write in (write for item in transact_items for write in item.values()):
        key = write.get("Key") or write["Item"]
        _touched.setdefault(key["user_id"]["S"], set()).add(key["item_id"]["S"])
    try:
        _transact_in_moto(self, transact_items)
    finally:
        _touched.clear()
        _snapshots.clear()


_transact_in_moto = DynamoDBBackend.transact_write_items
DynamoDBBackend.transact_write_items = _transact
Table.__deepcopy__ = _snapshot


class SerializedRequests:
    """Runs one request at a time: moto does not isolate concurrent requests."""

    def __init__(self, app) -> None:
        self.app = app
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        # Read outside the lock, so that a slow client does not block others.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = _BufferedBody(body)
        with self.lock:
            return list(self.app(environ, start_response))


class _BufferedBody:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def read(self, size: int = -1) -> bytes:
        size = len(self.body) if size is None or size < 0 else size
        read, self.body = self.body[:size], self.body[size:]
        return read

    readline = read


class Handler(WSGIRequestHandler):
    # Keep-alive, as with DynamoDB.
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, *_args) -> None:
        pass


def main() -> int:
    app = SerializedRequests(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client(
        "dynamodb",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    client.create_table(**TABLE)
    client.update_time_to_live(
        TableName=TABLE["TableName"],
        TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires_at"},
    )
    Path(sys.argv[1]).write_text(str(server.port))
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What stands in for DynamoDB on a machine without AWS: moto, with the service's table in it.

    dynamodb.py FILE

Run by infra/dynamodb.sh. It listens on a free port, which it writes into FILE when it is ready, and keeps everything in its
memory. moto is looser than DynamoDB; what it does not refuse is refused by shared/conversation/dynamodb/write.rs.
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

# Users whose items the transaction in hand may change.
_touched: set[str] | None = None


def _copy_what_is_touched(table: Table, memo: dict) -> Table:
    """moto copies a whole table before each transaction, to undo it. Here only the items of its users are copied."""
    twin = copy.copy(table)
    twin.items = copy.copy(table.items)
    for user in table.items if _touched is None else _touched & table.items.keys():
        twin.items[user] = copy.deepcopy(table.items[user], memo)
    return twin


def _transact(self: DynamoDBBackend, transact_items: list[dict]) -> None:
    global _touched
    keys = [op.get("Key") or op["Item"] for item in transact_items for op in item.values()]
    _touched = {key["user_id"]["S"] for key in keys if "user_id" in key}
    try:
        _transact_in_moto(self, transact_items)
    finally:
        _touched = None


_transact_in_moto = DynamoDBBackend.transact_write_items
DynamoDBBackend.transact_write_items = _transact
Table.__deepcopy__ = _copy_what_is_touched


class OneAtATime:
    """A request sees all of another one or nothing, which moto does not take care of."""

    def __init__(self, app) -> None:
        self.app = app
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        # Read before, so that a slow client holds up nobody.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = _Read(body)
        with self.lock:
            return list(self.app(environ, start_response))


class _Read:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def read(self, size: int = -1) -> bytes:
        size = len(self.body) if size is None or size < 0 else size
        read, self.body = self.body[:size], self.body[size:]
        return read

    readline = read


class Handler(WSGIRequestHandler):
    # Connections stay open, as those to DynamoDB do.
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, *_args) -> None:
        pass


def main() -> int:
    app = OneAtATime(DomainDispatcherApplication(create_backend_app))
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

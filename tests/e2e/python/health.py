"""Health checks. Runs first and waits until the server is SERVING."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import DEADLINE_SECONDS, channel, check, run_checks

health = health_pb2_grpc.HealthStub(channel)
SERVING = health_pb2.HealthCheckResponse.SERVING


@check("server_becomes_serving")
def _():
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS, wait_for_ready=True)
    assert any(response.status == SERVING for response in watch)
    watch.cancel()


for service in "", "agent.v1.AgentService", "agent.v1.MemoryService":

    @check(f"health_of_{service or 'server'}_is_serving")
    def _(service=service):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request, timeout=DEADLINE_SECONDS).status == SERVING


@check("health_of_unknown_service_is_not_found")
def _():
    try:
        health.Check(health_pb2.HealthCheckRequest(service="agent.v1.Nothing"), timeout=DEADLINE_SECONDS)
        raise AssertionError("answered")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error


run_checks()

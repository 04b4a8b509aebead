"""Waits until the server is healthy; the other scripts need not wait."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import DEADLINE_SECONDS, channel, check, run_checks

health = health_pb2_grpc.HealthStub(channel)
SERVING = health_pb2.HealthCheckResponse.SERVING


@check("the server becomes healthy")
def _():
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS, wait_for_ready=True)
    assert any(response.status == SERVING for response in watch)
    watch.cancel()


for service in "", "agent.v1.AgentService", "agent.v1.MemoryService":

    @check(f"health of {service or 'the whole server'} is SERVING")
    def _(service=service):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request, timeout=DEADLINE_SECONDS).status == SERVING


@check("health of an unknown service is NOT_FOUND")
def _():
    try:
        health.Check(health_pb2.HealthCheckRequest(service="agent.v1.Nothing"), timeout=DEADLINE_SECONDS)
        raise AssertionError("answered")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error


run_checks()

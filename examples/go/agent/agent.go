// Package agent connects to the agent service as a gateway does.
package agent

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// What gRPC tries again by itself, before the first frame. It waits for as long as the server says
// (grpc-retry-pushback-ms), and gives up where that says -1.
const retries = `{"methodConfig": [{
	"name": [{"service": "agent.v1.AgentService"}],
	"retryPolicy": {
		"maxAttempts": 4,
		"initialBackoff": "0.1s",
		"maxBackoff": "1s",
		"backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
	}
}]}`

// Tracer makes the spans whose traceparent goes along with every call. A program that wants to see
// them adds an exporter.
var Tracer = trace.NewTracerProvider().Tracer("examples")

// Connect returns one connection, which is enough for all users. https is TLS, http is not. The token,
// if there is one, goes along with every call.
func Connect(address, token string) (*grpc.ClientConn, error) {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Host == "" {
		return nil, fmt.Errorf("%q is no address of the form http://HOST:PORT", address)
	}
	security := insecure.NewCredentials()
	if parsed.Scheme == "https" {
		security = credentials.NewTLS(nil)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithPropagators(propagation.TraceContext{}))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultServiceConfig(retries),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.NewClient(parsed.Host, options...)
}

// Retryable tells whether the same call may be answered later: by its status, unless its trailers say by a
// grpc-retry-pushback-ms of -1 that it is no use.
func Retryable(err error, trailer metadata.MD) bool {
	code := status.Code(err)
	if code != codes.Unavailable && code != codes.ResourceExhausted && code != codes.Aborted {
		return false
	}
	pushback := trailer.Get("grpc-retry-pushback-ms")
	return len(pushback) == 0 || !strings.HasPrefix(pushback[0], "-")
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity would keep the token from a server on this machine that has no TLS.
func (b bearer) RequireTransportSecurity() bool { return false }

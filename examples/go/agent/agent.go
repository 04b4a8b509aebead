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

// gRPC's built-in retries, which apply before the first frame. gRPC waits as long as the server's
// grpc-retry-pushback-ms says, and does not retry if that is -1.
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

// Tracer creates the spans whose traceparent is sent with every call. Add an exporter to see them.
var Tracer = trace.NewTracerProvider().Tracer("examples")

// Connect returns a connection that all users can share, with TLS if the scheme is https. A token that
// is not empty is sent with every call.
func Connect(address, token string) (*grpc.ClientConn, error) {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Host == "" {
		return nil, fmt.Errorf("invalid address %q: expected http://HOST:PORT or https://HOST:PORT", address)
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

// Retryable reports whether a later attempt may succeed: by the status, unless the trailers have a
// grpc-retry-pushback-ms of -1.
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

// RequireTransportSecurity returns false, so that the token can be sent to a local server without TLS.
func (b bearer) RequireTransportSecurity() bool { return false }

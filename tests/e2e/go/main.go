// Simulates the WebSocket gateway: one connection for all users, keepalive pings, retries by service
// config, a span around each call, and users who disconnect early.
//
// Prints one line per check.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const (
	// deadline bounds every call, so that a hanging server fails a check.
	deadline          = 60 * time.Second
	concurrentStreams = 300
	impatientUsers    = 100

	retries = `{"methodConfig": [{
		"name": [{"service": "agent.v1.AgentService"}],
		"retryPolicy": {
			"maxAttempts": 4,
			"initialBackoff": "0.1s",
			"maxBackoff": "1s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
		}
	}]}`
)

// traffic counts connections and attempts. gRPC hides both: it replaces a connection after GOAWAY and
// retries failed attempts.
type traffic struct {
	connections, attempts atomic.Int64
}

func (t *traffic) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (t *traffic) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (t *traffic) HandleConn(_ context.Context, event stats.ConnStats) {
	if _, ok := event.(*stats.ConnBegin); ok {
		t.connections.Add(1)
	}
}

func (t *traffic) HandleRPC(_ context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.Begin); ok {
		t.attempts.Add(1)
	}
}

type gateway struct {
	agent   agentv1.AgentServiceClient
	tracer  *trace.TracerProvider
	traffic *traffic
}

type turn struct {
	traceID string // of the span around the call
	frames  []*agentv1.ChatResponse
}

// chat streams one answer inside a span, as the gateway does for a WebSocket message. It cancels the
// call once shouldContinue returns false.
func (g *gateway) chat(ctx context.Context, user string, request *agentv1.ChatRequest, shouldContinue func(*agentv1.ChatResponse) bool) (turn, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	ctx, span := g.tracer.Tracer("gateway").Start(ctx, "websocket message")
	defer span.End()
	ctx = metadata.AppendToOutgoingContext(ctx, "user-id", user, "x-trace-id", "gateway-"+user)

	seen := turn{traceID: span.SpanContext().TraceID().String()}
	stream, err := g.agent.StreamChat(ctx, request)
	if err != nil {
		return seen, err
	}
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return seen, nil
		}
		if err != nil {
			return seen, err
		}
		seen.frames = append(seen.frames, frame)
		if !shouldContinue(frame) {
			cancel()
		}
	}
}

func untilEnd(*agentv1.ChatResponse) bool { return true }

func question() *agentv1.ChatRequest {
	return &agentv1.ChatRequest{Input: &agentv1.ChatRequest_Message{Message: "帮我制定高数复习计划"}}
}

// label names the payload of a frame, or the state of a status update.
func label(frame *agentv1.ChatResponse) string {
	switch content := frame.Content.(type) {
	case *agentv1.ChatResponse_StatusUpdate:
		return content.StatusUpdate.State.String()
	case *agentv1.ChatResponse_Delta:
		return "delta"
	case *agentv1.ChatResponse_Citations:
		return "citations"
	case *agentv1.ChatResponse_Usage:
		return "usage"
	case *agentv1.ChatResponse_FullText:
		return "full_text"
	default:
		return fmt.Sprintf("%T", content)
	}
}

// verify checks a complete answer to a user without memories.
func (t turn) verify() error {
	var order []string
	var answer strings.Builder
	for index, frame := range t.frames {
		if frame.TraceId != t.traceID {
			return fmt.Errorf("frame %d has trace_id %q, the span has %q", index, frame.TraceId, t.traceID)
		}
		last := index == len(t.frames)-1
		if (frame.FinishReason == agentv1.FinishReason_STOP) != last || (!last && frame.FinishReason != agentv1.FinishReason_NULL) {
			return fmt.Errorf("frame %d of %d has finish_reason %v", index, len(t.frames), frame.FinishReason)
		}
		answer.WriteString(frame.GetDelta())
		if repeated := label(frame) == "delta" && index > 0 && label(t.frames[index-1]) == "delta"; !repeated {
			order = append(order, label(frame))
		}
	}
	if got, want := strings.Join(order, " "), "THINKING SEARCHING GENERATING delta usage full_text"; got != want {
		return fmt.Errorf("frame order %q, want %q", got, want)
	}
	if full := t.frames[len(t.frames)-1].GetFullText(); full != answer.String() {
		return fmt.Errorf("full_text %q differs from the joined deltas %q", full, answer.String())
	}
	return nil
}

func (g *gateway) answered(ctx context.Context, user string) error {
	turn, err := g.chat(ctx, user, question(), untilEnd)
	if err != nil {
		return err
	}
	return turn.verify()
}

// concurrently runs count users at once and returns the first failure.
func concurrently(count int, user func(int) error) error {
	failures := make([]error, count)
	var users sync.WaitGroup
	for index := range count {
		users.Go(func() { failures[index] = user(index) })
	}
	users.Wait()
	var failed int
	var first error
	for _, err := range failures {
		if err != nil {
			failed++
			first = cmp.Or(first, err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d failed, first error: %w", failed, count, first)
	}
	return nil
}

func (g *gateway) manyStreams(ctx context.Context) error {
	return concurrently(concurrentStreams, func(index int) error {
		return g.answered(ctx, fmt.Sprintf("crowd-%d", index))
	})
}

// leaveMidway cancels calls after the first delta.
func (g *gateway) leaveMidway(ctx context.Context) error {
	return concurrently(impatientUsers, func(index int) error {
		_, err := g.chat(ctx, fmt.Sprintf("leaver-%d", index), question(), func(frame *agentv1.ChatResponse) bool {
			return label(frame) != "delta"
		})
		return expect(err, codes.Canceled)
	})
}

// leaveAtOnce cancels calls before the first frame. HTTP/2 servers may treat many such resets as an
// attack (rapid reset) and close the connection with ENHANCE_YOUR_CALM.
func (g *gateway) leaveAtOnce(ctx context.Context) error {
	for index := range impatientUsers {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "user-id", fmt.Sprintf("hasty-%d", index)))
		stream, err := g.agent.StreamChat(ctx, question())
		cancel()
		if err == nil {
			_, err = stream.Recv()
		}
		if err := expect(err, codes.Canceled); err != nil {
			return err
		}
	}
	return g.answered(ctx, "patient")
}

func (g *gateway) refusalIsNotRetried(ctx context.Context) error {
	before := g.traffic.attempts.Load()
	request := question()
	request.SessionId = "a/b"
	_, err := g.chat(ctx, "mistaken", request, untilEnd)
	if err := expect(err, codes.InvalidArgument); err != nil {
		return err
	}
	if attempts := g.traffic.attempts.Load() - before; attempts != 1 {
		return fmt.Errorf("%d attempts", attempts)
	}
	return nil
}

func (g *gateway) oneConnection(context.Context) error {
	if connections := g.traffic.connections.Load(); connections != 1 {
		return fmt.Errorf("%d connections", connections)
	}
	return nil
}

func expect(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("ended with %v (%v), want %v", status.Code(err), err, code)
	}
	return nil
}

func run(address, internalAPIKey string) (failed int, err error) {
	// traceparent is sent without an exporter, too.
	tracer := trace.NewTracerProvider()
	traffic := &traffic{}
	conn, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(tracer),
			otelgrpc.WithPropagators(propagation.TraceContext{}),
		)),
		grpc.WithStatsHandler(traffic),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultServiceConfig(retries),
	)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	g := &gateway{agent: agentv1.NewAgentServiceClient(conn), tracer: tracer, traffic: traffic}

	ctx := context.Background()
	if internalAPIKey != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-internal-api-key", internalAPIKey)
	}
	for _, check := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"frames_arrive_in_order_with_trace_id", func(ctx context.Context) error { return g.answered(ctx, "gateway-user") }},
		{fmt.Sprintf("%d_concurrent_streams_complete", concurrentStreams), g.manyStreams},
		{fmt.Sprintf("%d_users_cancel_midway", impatientUsers), g.leaveMidway},
		{fmt.Sprintf("%d_users_cancel_at_once_and_next_completes", impatientUsers), g.leaveAtOnce},
		{"invalid_argument_is_not_retried", g.refusalIsNotRetried},
		{"all_calls_share_one_connection", g.oneConnection},
	} {
		if err := check.run(ctx); err != nil {
			failed++
			fmt.Printf("FAIL  %s\n      %v\n", check.name, err)
			continue
		}
		fmt.Printf("ok  %s\n", check.name)
	}
	return failed, nil
}

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gateway ADDRESS [INTERNAL_API_KEY]")
		os.Exit(2)
	}
	failed, err := run(os.Args[1], strings.Join(os.Args[2:], ""))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

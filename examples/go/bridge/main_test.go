package main

import (
	"context"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/google/uuid"
	"github.com/sparkle/agent-service/examples/go/agent"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// frame is the subset of ChatResponse that the tests read.
type frame struct {
	ResponseID   string `json:"response_id"`
	SessionID    string `json:"session_id"`
	Delta        string `json:"delta"`
	FullText     string `json:"full_text"`
	FinishReason string `json:"finish_reason"`
	Error        struct {
		Code      string `json:"code"`
		ErrorCode string `json:"error_code"`
		Retryable bool   `json:"retryable"`
	} `json:"error"`
}

// dial opens a socket to a bridge for the agent service at AGENT_URL.
func dial(t *testing.T) (context.Context, *websocket.Conn) {
	if os.Getenv("AGENT_URL") == "" {
		t.Skip("AGENT_URL is not set")
	}
	bridge, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	return dialBridge(t, bridge)
}

func dialBridge(t *testing.T, bridge *bridge) (context.Context, *websocket.Conn) {
	server := httptest.NewServer(bridge)
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	socket, _, err := websocket.Dial(ctx, server.URL+"?user=page", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.CloseNow() })
	return ctx, socket
}

func send(t *testing.T, ctx context.Context, socket *websocket.Conn, request message) {
	if err := wsjson.Write(ctx, socket, request); err != nil {
		t.Fatal(err)
	}
}

// read reads at most limit frames, or to the end of the answer.
func read(t *testing.T, ctx context.Context, socket *websocket.Conn, limit int) (answer string, last frame) {
	for range limit {
		last = frame{}
		if err := wsjson.Read(ctx, socket, &last); err != nil {
			t.Fatal(err)
		}
		answer += last.Delta
		if last.FinishReason != "" {
			break
		}
	}
	return answer, last
}

const noLimit = 10_000

func question() message {
	return message{Message: "Make me a calculus review plan", RequestID: uuid.NewString()}
}

func TestAnswerResumesOnAnotherSocket(t *testing.T) {
	request := question()
	ctx, socket := dial(t)
	send(t, ctx, socket, request)
	before, last := read(t, ctx, socket, 20)
	socket.CloseNow()

	request.LastResponseID = last.ResponseID
	ctx, socket = dial(t)
	send(t, ctx, socket, request)
	after, last := read(t, ctx, socket, noLimit)
	if before == "" || after == "" || before+after != last.FullText {
		t.Errorf("%q and %q are not the parts of %q", before, after, last.FullText)
	}
}

func TestAnswerIsCancelled(t *testing.T) {
	request := question()
	ctx, socket := dial(t)
	send(t, ctx, socket, request)
	_, last := read(t, ctx, socket, 20)
	send(t, ctx, socket, message{SessionID: last.SessionID, RequestID: request.RequestID, Cancel: true})
	if _, last = read(t, ctx, socket, noLimit); last.Error.Code != "CANCELLED" {
		t.Errorf("last frame: %+v", last)
	}
}

func TestRefusalIsFrameAndSocketStaysOpen(t *testing.T) {
	ctx, socket := dial(t)
	send(t, ctx, socket, message{Message: " "})
	if _, last := read(t, ctx, socket, noLimit); last.Error.Code != "INVALID_ARGUMENT" || last.Error.Retryable {
		t.Errorf("last frame: %+v", last)
	}
	send(t, ctx, socket, question())
	if answer, last := read(t, ctx, socket, noLimit); answer == "" || answer != last.FullText {
		t.Errorf("last frame: %+v", last)
	}
}

func TestOversizedMessageClosesSocket(t *testing.T) {
	ctx, socket := dial(t)
	send(t, ctx, socket, message{Message: strings.Repeat("a", maxMessageBytes)})
	if _, _, err := socket.Read(ctx); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
		t.Errorf("read error: %v", err)
	}
}

// silent is a service that sends no frame until its call is cancelled, and reports its calls.
type silent struct {
	agentv1.AgentServiceClient
	agentv1.ConversationServiceClient
	started, ended chan struct{}
	cancelled      chan string
}

func (s *silent) StreamChat(ctx context.Context, _ *agentv1.ChatRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[agentv1.ChatResponse], error) {
	s.started <- struct{}{}
	<-ctx.Done()
	s.ended <- struct{}{}
	return nil, status.FromContextError(ctx.Err()).Err()
}

func (s *silent) CancelTurn(_ context.Context, stop *agentv1.CancelTurnRequest, _ ...grpc.CallOption) (*agentv1.CancelTurnResponse, error) {
	s.cancelled <- stop.RequestId
	return &agentv1.CancelTurnResponse{Cancelled: true}, nil
}

func TestAnswersOverLimitAreRefusedButCancelWorks(t *testing.T) {
	service := &silent{started: make(chan struct{}), ended: make(chan struct{}, maxAnswers), cancelled: make(chan string)}
	ctx, socket := dialBridge(t, &bridge{service, service})
	for range maxAnswers {
		send(t, ctx, socket, question())
		next(t, ctx, service.started)
	}
	send(t, ctx, socket, question())
	_, last := read(t, ctx, socket, noLimit)
	if last.Error.Code != "RESOURCE_EXHAUSTED" || last.Error.ErrorCode != "ERROR_CODE_RATE_LIMITED" || !last.Error.Retryable {
		t.Errorf("last frame: %+v", last)
	}
	send(t, ctx, socket, message{SessionID: "s", RequestID: "first", Cancel: true})
	if cancelled := next(t, ctx, service.cancelled); cancelled != "first" {
		t.Errorf("cancelled request %q", cancelled)
	}
	socket.CloseNow()
	for range maxAnswers {
		next(t, ctx, service.ended)
	}
}

func next[T any](t *testing.T, ctx context.Context, from chan T) (value T) {
	select {
	case value = <-from:
	case <-ctx.Done():
		t.Fatal("timed out")
	}
	return value
}

func TestRetryableRespectsPushback(t *testing.T) {
	exhausted := status.Error(codes.ResourceExhausted, "")
	for pushback, retryable := range map[string]bool{"-1": false, "1000": true} {
		if agent.Retryable(exhausted, metadata.Pairs("grpc-retry-pushback-ms", pushback)) != retryable {
			t.Errorf("pushback %s", pushback)
		}
	}
	if !agent.Retryable(exhausted, nil) || agent.Retryable(status.Error(codes.InvalidArgument, ""), nil) {
		t.Error("without pushback")
	}
}

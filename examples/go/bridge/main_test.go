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

// frame is what a page reads of one.
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

// page opens a socket to a bridge before the agent service at AGENT_URL.
func page(t *testing.T) (context.Context, *websocket.Conn) {
	if os.Getenv("AGENT_URL") == "" {
		t.Skip("AGENT_URL names no agent service")
	}
	bridge, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	return pageOf(t, bridge)
}

func pageOf(t *testing.T, bridge *bridge) (context.Context, *websocket.Conn) {
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

func send(t *testing.T, ctx context.Context, socket *websocket.Conn, asked message) {
	if err := wsjson.Write(ctx, socket, asked); err != nil {
		t.Fatal(err)
	}
}

// read reads so many frames, or to the end.
func read(t *testing.T, ctx context.Context, socket *websocket.Conn, most int) (answer string, last frame) {
	for range most {
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

const all = 10_000

func question() message {
	return message{Message: "Make me a calculus review plan", RequestID: uuid.NewString()}
}

func TestAnAnswerGoesOnOverAnotherSocket(t *testing.T) {
	asked := question()
	ctx, socket := page(t)
	send(t, ctx, socket, asked)
	before, last := read(t, ctx, socket, 20)
	socket.CloseNow()

	asked.LastResponseID = last.ResponseID
	ctx, socket = page(t)
	send(t, ctx, socket, asked)
	behind, last := read(t, ctx, socket, all)
	if before == "" || behind == "" || before+behind != last.FullText {
		t.Errorf("%q and %q are not the whole of %q", before, behind, last.FullText)
	}
}

func TestAnAnswerIsStopped(t *testing.T) {
	asked := question()
	ctx, socket := page(t)
	send(t, ctx, socket, asked)
	_, last := read(t, ctx, socket, 20)
	send(t, ctx, socket, message{SessionID: last.SessionID, RequestID: asked.RequestID, Cancel: true})
	if _, last = read(t, ctx, socket, all); last.Error.Code != "CANCELLED" {
		t.Errorf("it ended with %+v", last)
	}
}

func TestARefusalIsAFrameAndTheSocketGoesOn(t *testing.T) {
	ctx, socket := page(t)
	send(t, ctx, socket, message{Message: " "})
	if _, last := read(t, ctx, socket, all); last.Error.Code != "INVALID_ARGUMENT" || last.Error.Retryable {
		t.Errorf("it ended with %+v", last)
	}
	send(t, ctx, socket, question())
	if answer, last := read(t, ctx, socket, all); answer == "" || answer != last.FullText {
		t.Errorf("it ended with %+v", last)
	}
}

func TestAMessageThatIsTooLargeClosesTheSocket(t *testing.T) {
	ctx, socket := page(t)
	send(t, ctx, socket, message{Message: strings.Repeat("a", maxMessageBytes)})
	if _, _, err := socket.Read(ctx); websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
		t.Errorf("it ended with %v", err)
	}
}

// silent is a service that says nothing until its call ends, and tells of what it is asked.
type silent struct {
	agentv1.AgentServiceClient
	agentv1.ConversationServiceClient
	began, ended chan struct{}
	cancelled    chan string
}

func (s *silent) StreamChat(ctx context.Context, _ *agentv1.ChatRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[agentv1.ChatResponse], error) {
	s.began <- struct{}{}
	<-ctx.Done()
	s.ended <- struct{}{}
	return nil, status.FromContextError(ctx.Err()).Err()
}

func (s *silent) CancelTurn(_ context.Context, stop *agentv1.CancelTurnRequest, _ ...grpc.CallOption) (*agentv1.CancelTurnResponse, error) {
	s.cancelled <- stop.RequestId
	return &agentv1.CancelTurnResponse{Cancelled: true}, nil
}

func TestOneAnswerTooManyIsRefusedAndAStopStillCounts(t *testing.T) {
	service := &silent{began: make(chan struct{}), ended: make(chan struct{}, maxAnswers), cancelled: make(chan string)}
	ctx, socket := pageOf(t, &bridge{service, service})
	for range maxAnswers {
		send(t, ctx, socket, question())
		next(t, ctx, service.began)
	}
	send(t, ctx, socket, question())
	_, last := read(t, ctx, socket, all)
	if last.Error.Code != "RESOURCE_EXHAUSTED" || last.Error.ErrorCode != "ERROR_CODE_RATE_LIMITED" || !last.Error.Retryable {
		t.Errorf("it ended with %+v", last)
	}
	send(t, ctx, socket, message{SessionID: "s", RequestID: "first", Cancel: true})
	if stopped := next(t, ctx, service.cancelled); stopped != "first" {
		t.Errorf("%q was stopped", stopped)
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
		t.Fatal("waited in vain")
	}
	return value
}

func TestWhatTheServerCallsNoUseIsNotRetryable(t *testing.T) {
	exhausted := status.Error(codes.ResourceExhausted, "")
	for pushback, retryable := range map[string]bool{"-1": false, "1000": true} {
		if agent.Retryable(exhausted, metadata.Pairs("grpc-retry-pushback-ms", pushback)) != retryable {
			t.Errorf("after %s", pushback)
		}
	}
	if !agent.Retryable(exhausted, nil) || agent.Retryable(status.Error(codes.InvalidArgument, ""), nil) {
		t.Error("by its status alone")
	}
}

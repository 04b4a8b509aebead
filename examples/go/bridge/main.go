// WebSocket bridge: lets web pages chat over a WebSocket, as the gateway does.
//
//	go run ./bridge [-listen ADDRESS]
//
// A page connects to ws://ADDRESS/chat?user=ann and sends {"message": "…"}, optionally with session_id and
// request_id. To resume, it sends the same message with last_response_id; to cancel, {"cancel": true} with
// session_id. It receives one JSON message per frame: a ChatResponse with the proto's field names. The last
// message of an answer has a finish_reason, also if the call was refused.
//
// Environment: AGENT_URL (service address), AGENT_TOKEN (token that may act for the bridge's users).
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/sparkle/agent-service/examples/go/agent"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/sync/errgroup"
	code_pb "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	maxMessageBytes = 128 << 10 // the service accepts 100 kB of text
	maxAnswers      = 4         // concurrent, per socket
	answerTimeout   = 5 * time.Minute
)

// errorCodes maps gRPC codes to the contract's; other codes map to ERROR_CODE_UNSPECIFIED.
var errorCodes = map[codes.Code]agentv1.ErrorCode{
	codes.InvalidArgument:   agentv1.ErrorCode_ERROR_CODE_INVALID_ARGUMENT,
	codes.Unauthenticated:   agentv1.ErrorCode_ERROR_CODE_UNAUTHORIZED,
	codes.PermissionDenied:  agentv1.ErrorCode_ERROR_CODE_FORBIDDEN,
	codes.NotFound:          agentv1.ErrorCode_ERROR_CODE_NOT_FOUND,
	codes.Aborted:           agentv1.ErrorCode_ERROR_CODE_CONFLICT,
	codes.ResourceExhausted: agentv1.ErrorCode_ERROR_CODE_RATE_LIMITED,
	codes.Unavailable:       agentv1.ErrorCode_ERROR_CODE_UNAVAILABLE,
	codes.DeadlineExceeded:  agentv1.ErrorCode_ERROR_CODE_TIMEOUT,
	codes.Internal:          agentv1.ErrorCode_ERROR_CODE_INTERNAL,
}

type message struct {
	Message        string `json:"message"`
	SessionID      string `json:"session_id"`
	RequestID      string `json:"request_id"`
	LastResponseID string `json:"last_response_id"`
	Cancel         bool   `json:"cancel"`
}

type bridge struct {
	agent         agentv1.AgentServiceClient
	conversations agentv1.ConversationServiceClient
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen on; port 0 picks a free port")
	flag.Parse()
	bridge, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("ws://%s/chat\n", listener.Addr())
	http.Handle("/chat", bridge)
	log.Fatal(http.Serve(listener, nil))
}

func connect() (*bridge, error) {
	conn, err := agent.Connect(cmp.Or(os.Getenv("AGENT_URL"), "http://127.0.0.1:50051"), os.Getenv("AGENT_TOKEN"))
	if err != nil {
		return nil, err
	}
	return &bridge{agentv1.NewAgentServiceClient(conn), agentv1.NewConversationServiceClient(conn)}, nil
}

// ServeHTTP serves one socket until it closes.
func (b *bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	socket, err := websocket.Accept(w, r, nil) // rejects cross-origin requests
	if err != nil {
		return
	}
	defer socket.CloseNow()
	socket.SetReadLimit(maxMessageBytes)

	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	// A real gateway must take the user from its own authentication, never from a query parameter.
	ctx = metadata.AppendToOutgoingContext(ctx, "user-id", r.URL.Query().Get("user"))
	// The socket is read while answers run, so that closing it cancels their calls at once.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, ctx := errgroup.WithContext(ctx)
	answers.SetLimit(maxAnswers)
	cancellations, ctx := errgroup.WithContext(ctx)
	cancellations.SetLimit(maxAnswers)
	for {
		var request message
		if wsjson.Read(ctx, socket, &request) != nil {
			return
		}
		// Cancellations have their own concurrency limit, so that answers cannot block them. Over the limit, a request is refused
		// rather than queued.
		calls := answers
		if request.Cancel {
			calls = cancellations
		}
		if !calls.TryGo(func() error { return b.answer(ctx, socket, request) }) {
			tooMany := status.Errorf(codes.ResourceExhausted, "this socket already has %d answers in progress", maxAnswers)
			if refuse(ctx, socket, request, tooMany, nil) != nil {
				return
			}
		}
	}
}

// answer forwards one answer, or cancels one. It fails only if the socket does.
func (b *bridge) answer(ctx context.Context, socket *websocket.Conn, request message) error {
	call, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	call, span := agent.Tracer.Start(call, "websocket message")
	defer span.End()
	if request.Cancel {
		stop := &agentv1.CancelTurnRequest{SessionId: request.SessionID, RequestId: request.RequestID}
		var trailer metadata.MD
		_, err := b.conversations.CancelTurn(call, stop, grpc.Trailer(&trailer))
		return refuse(ctx, socket, request, err, trailer)
	}
	if request.LastResponseID != "" {
		call = metadata.AppendToOutgoingContext(call, "x-last-response-id", request.LastResponseID)
	}
	var trailer metadata.MD
	stream, err := b.agent.StreamChat(call, &agentv1.ChatRequest{
		SessionId: request.SessionID,
		RequestId: request.RequestID,
		Input:     &agentv1.ChatRequest_Message{Message: request.Message},
	}, grpc.Trailer(&trailer))
	for err == nil {
		var frame *agentv1.ChatResponse
		if frame, err = stream.Recv(); err != nil {
			break
		}
		if err := write(ctx, socket, frame); err != nil {
			return err
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return refuse(ctx, socket, request, err, trailer)
}

// refuse sends a gRPC status as an error frame, so that pages handle one kind of error.
func refuse(ctx context.Context, socket *websocket.Conn, request message, err error, trailer metadata.MD) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	return write(ctx, socket, &agentv1.ChatResponse{
		SessionId:    request.SessionID,
		RequestId:    request.RequestID,
		FinishReason: agentv1.FinishReason_ERROR,
		Content: &agentv1.ChatResponse_Error{Error: &agentv1.Error{
			Code:      code_pb.Code(code).String(),
			Message:   status.Convert(err).Message(),
			Retryable: agent.Retryable(err, trailer),
			ErrorCode: errorCodes[code],
		}},
	})
}

func write(ctx context.Context, socket *websocket.Conn, frame *agentv1.ChatResponse) error {
	json, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(frame)
	if err != nil {
		return err
	}
	return socket.Write(ctx, websocket.MessageText, json)
}

// Lets web pages chat over a WebSocket, as the gateway does.
//
//	go run ./bridge [-listen ADDRESS]
//
// A page connects to ws://ADDRESS/chat?user=ann and sends {"message": "…"}, if it likes with session_id and
// request_id; to resume, the same again with last_response_id; to stop an answer, {"cancel": true} with its
// session_id. It gets one JSON message a frame: a ChatResponse with the field names of the contract. The last
// one of an answer has a finish_reason, also where the call was refused.
//
// AGENT_URL and AGENT_TOKEN say where the service is, and by which right the bridge speaks for its users.
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
	maxMessageBytes = 128 << 10 // the service takes 100 kB of text
	maxAnswers      = 4         // of one socket at the same time
	answerTimeout   = 5 * time.Minute
)

// classes of what a call is refused with; anything else is unknown to a page.
var classes = map[codes.Code]agentv1.ErrorCode{
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
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen on; port 0 is any free one")
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

// ServeHTTP answers one socket until it closes.
func (b *bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	socket, err := websocket.Accept(w, r, nil) // refuses pages of other origins
	if err != nil {
		return
	}
	defer socket.CloseNow()
	socket.SetReadLimit(maxMessageBytes)

	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	// A gateway takes the user from what it authenticated the socket by, never from the page's word.
	ctx = metadata.AppendToOutgoingContext(ctx, "user-id", r.URL.Query().Get("user"))
	// Reading goes on while answers run, so that a socket that closes cancels their calls at once.
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	answers, ctx := errgroup.WithContext(ctx)
	answers.SetLimit(maxAnswers)
	stops, ctx := errgroup.WithContext(ctx)
	stops.SetLimit(maxAnswers)
	for {
		var asked message
		if wsjson.Read(ctx, socket, &asked) != nil {
			return
		}
		// Stops have places of their own, so that answers can not keep them out. Nothing here waits for a place.
		calls := answers
		if asked.Cancel {
			calls = stops
		}
		if !calls.TryGo(func() error { return b.answer(ctx, socket, asked) }) {
			tooMany := status.Errorf(codes.ResourceExhausted, "this socket has %d answers already", maxAnswers)
			if refuse(ctx, socket, asked, tooMany, nil) != nil {
				return
			}
		}
	}
}

// answer passes on one answer, or stops it. It fails only where the socket does.
func (b *bridge) answer(ctx context.Context, socket *websocket.Conn, asked message) error {
	call, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	call, span := agent.Tracer.Start(call, "websocket message")
	defer span.End()
	if asked.Cancel {
		stop := &agentv1.CancelTurnRequest{SessionId: asked.SessionID, RequestId: asked.RequestID}
		var trailer metadata.MD
		_, err := b.conversations.CancelTurn(call, stop, grpc.Trailer(&trailer))
		return refuse(ctx, socket, asked, err, trailer)
	}
	if asked.LastResponseID != "" {
		call = metadata.AppendToOutgoingContext(call, "x-last-response-id", asked.LastResponseID)
	}
	var trailer metadata.MD
	stream, err := b.agent.StreamChat(call, &agentv1.ChatRequest{
		SessionId: asked.SessionID,
		RequestId: asked.RequestID,
		Input:     &agentv1.ChatRequest_Message{Message: asked.Message},
	}, grpc.Trailer(&trailer))
	for err == nil {
		var frame *agentv1.ChatResponse
		if frame, err = stream.Recv(); err != nil {
			break
		}
		if broken := write(ctx, socket, frame); broken != nil {
			return broken
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return refuse(ctx, socket, asked, err, trailer)
}

// refuse tells of a gRPC status in a frame like the others: a page has one kind of error to understand.
func refuse(ctx context.Context, socket *websocket.Conn, asked message, err error, trailer metadata.MD) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	return write(ctx, socket, &agentv1.ChatResponse{
		SessionId:    asked.SessionID,
		RequestId:    asked.RequestID,
		FinishReason: agentv1.FinishReason_ERROR,
		Content: &agentv1.ChatResponse_Error{Error: &agentv1.Error{
			Code:      code_pb.Code(code).String(),
			Message:   status.Convert(err).Message(),
			Retryable: agent.Retryable(err, trailer),
			ErrorCode: classes[code],
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

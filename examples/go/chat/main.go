// Asks the agent service a question and prints the answer as it streams.
//
//	go run ./chat [-cut-after N] [-stop-after N] [-language TAG] [QUESTION]
//
// Environment: AGENT_URL (service address), AGENT_USER (user id), AGENT_TOKEN (bearer token).
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/sparkle/agent-service/examples/go/agent"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var (
	cutAfter  = flag.Int("cut-after", 0, "drop the connection after `N` frames, and resume")
	stopAfter = flag.Int("stop-after", 0, "cancel the answer after `N` frames")
	language  = flag.String("language", "", "`TAG` of the language of statuses and errors, such as zh-CN")
)

func main() {
	flag.Parse()
	if err := run(context.Background(), cmp.Or(flag.Arg(0), "Make me a calculus review plan")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, question string) error {
	conn, err := agent.Connect(cmp.Or(os.Getenv("AGENT_URL"), "http://127.0.0.1:50051"), os.Getenv("AGENT_TOKEN"))
	if err != nil {
		return err
	}
	defer conn.Close()
	// The user of every call. With a token, it must be its subject.
	ctx = metadata.AppendToOutgoingContext(ctx, "user-id", cmp.Or(os.Getenv("AGENT_USER"), "ann"))
	ctx, span := agent.Tracer.Start(ctx, "question")
	defer span.End()

	var trailer metadata.MD
	if err := remember(ctx, conn, grpc.Trailer(&trailer)); err != nil {
		return refused(err, trailer)
	}
	return ask(ctx, conn, question)
}

// remember stores a memory; idempotent by id.
func remember(ctx context.Context, conn *grpc.ClientConn, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := agentv1.NewMemoryServiceClient(conn).AddMemories(ctx, &agentv1.AddMemoriesRequest{
		Memories: []*agentv1.MemoryInput{{Id: "exam", Content: "The calculus exam is on the ninth of June"}},
	}, options...)
	return err
}

// ask prints one answer to its end, resuming after lost connections.
func ask(ctx context.Context, conn *grpc.ClientConn, question string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	request := &agentv1.ChatRequest{
		RequestId:   uuid.NewString(), // makes retries idempotent
		Input:       &agentv1.ChatRequest_Message{Message: question},
		UserProfile: &agentv1.UserProfile{Language: *language},
	}
	var last *agentv1.ChatResponse
	for attempt := 1; ; attempt++ {
		var err error
		var trailer metadata.MD
		last, err = read(ctx, conn, request, last, grpc.Trailer(&trailer))
		// A call cancelled by the client itself ends with CANCELLED.
		lost := status.Code(err) == codes.Unavailable || status.Code(err) == codes.Canceled
		switch {
		case last.GetFinishReason() != agentv1.FinishReason_NULL:
			return failed(last.GetError())
		case last == nil || !lost || attempt == 5:
			return refused(err, trailer)
		}
		fmt.Fprintln(os.Stderr, "[connection lost; resuming]")
		time.Sleep(time.Duration(attempt) * 200 * time.Millisecond)
	}
}

// read prints the frames after the last received one, and returns the new last frame.
func read(ctx context.Context, conn *grpc.ClientConn, request *agentv1.ChatRequest, last *agentv1.ChatResponse, options ...grpc.CallOption) (*agentv1.ChatResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	isFirst := last == nil
	if !isFirst {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-last-response-id", last.ResponseId)
	}
	stream, err := agentv1.NewAgentServiceClient(conn).StreamChat(ctx, request, options...)
	if err != nil {
		return last, err
	}
	for frames := 1; ; frames++ {
		frame, err := stream.Recv()
		if err != nil {
			return last, err
		}
		last = frame
		show(frame)
		if isFirst && frames == *cutAfter {
			cancel()
		}
		if isFirst && frames == *stopAfter {
			stop := &agentv1.CancelTurnRequest{SessionId: frame.SessionId, RequestId: frame.RequestId}
			if _, err := agentv1.NewConversationServiceClient(conn).CancelTurn(ctx, stop); err != nil {
				return last, err
			}
		}
	}
}

// show prints the answer to standard output, and everything else to standard error.
func show(frame *agentv1.ChatResponse) {
	switch content := frame.Content.(type) {
	case *agentv1.ChatResponse_StatusUpdate:
		fmt.Fprintf(os.Stderr, "[%v] %s\n", content.StatusUpdate.State, content.StatusUpdate.Details)
	case *agentv1.ChatResponse_Citations:
		for _, citation := range content.Citations.Citations {
			fmt.Fprintf(os.Stderr, "  %.2f  %s\n", citation.Score, citation.Content)
		}
	case *agentv1.ChatResponse_Delta:
		fmt.Print(content.Delta)
	case *agentv1.ChatResponse_Usage:
		fmt.Println()
		fmt.Fprintf(os.Stderr, "[%d tokens]\n", content.Usage.TotalTokens)
	}
}

// failed describes a failure after the first frame: an error frame.
func failed(frame *agentv1.Error) error {
	if frame == nil {
		return nil
	}
	return fmt.Errorf("failed: %s: %s%s", frame.Code, frame.Message, hint(frame.Retryable))
}

// refused describes a refusal before the first frame: a gRPC status.
func refused(err error, trailer metadata.MD) error {
	return fmt.Errorf("refused: %v: %s%s", status.Code(err), status.Convert(err).Message(), hint(agent.Retryable(err, trailer)))
}

func hint(retryable bool) string {
	if retryable {
		return " (retryable)"
	}
	return ""
}

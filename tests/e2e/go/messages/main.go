// Does what the existing WebSocket gateway does with a user's messages: a new request_id for each message, the
// message as the last entry of the history, keepalive pings without streams, retries by service config, and a stream
// that is dropped when the user's socket closes. It never resumes, and never cancels a turn.
//
// Takes the program as its argument, starts it, and prints one line per check.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sparkle/agent-service/tests/e2e/go/program"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const (
	// deadline bounds every call, so that a hanging server fails a check.
	deadline = 60 * time.Second
	user     = "socket-user"
	messages = 20

	retries = `{"methodConfig": [{
		"name": [{"service": "agent.v1.AgentService"}],
		"retryPolicy": {
			"maxAttempts": 4,
			"initialBackoff": "0.01s",
			"maxBackoff": "0.01s",
			"backoffMultiplier": 1,
			"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
		}
	}]}`
)

// attempts counts what gRPC sends, with its retries.
type attempts struct{ count atomic.Int64 }

func (a *attempts) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (a *attempts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (a *attempts) HandleConn(context.Context, stats.ConnStats) {}

func (a *attempts) HandleRPC(_ context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.Begin); ok {
		a.count.Add(1)
	}
}

// socket is the WebSocket of one user in one session.
type socket struct {
	agent    agentv1.AgentServiceClient
	attempts *attempts
	session  string
	history  []*agentv1.ChatMessage
}

// stream is an answer on its way to the socket.
type stream struct {
	agentv1.AgentService_StreamChatClient
	close context.CancelFunc
}

// say sends a message as the gateway does: stored first, so that the history ends with it.
func (s *socket) say(text string) (stream, error) {
	s.history = append(s.history, &agentv1.ChatMessage{Role: "user", Content: text})
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	ctx = metadata.AppendToOutgoingContext(ctx, "user-id", user)
	answer, err := s.agent.StreamChat(ctx, &agentv1.ChatRequest{
		UserId:    user,
		SessionId: s.session,
		RequestId: rand.Text(),
		Input:     &agentv1.ChatRequest_Message{Message: text},
		History:   s.history,
	})
	if err != nil {
		cancel()
		return stream{}, err
	}
	return stream{answer, cancel}, nil
}

// until reads frames up to one that matches.
func (s stream) until(matches func(*agentv1.ChatResponse) bool) error {
	for {
		frame, err := s.Recv()
		if err != nil {
			return err
		}
		if matches(frame) {
			return nil
		}
	}
}

func isDelta(frame *agentv1.ChatResponse) bool { return frame.GetDelta() != "" }

func isFirst(*agentv1.ChatResponse) bool { return true }

// answered sends a message and reads its whole answer.
func (s *socket) answered(text string) error {
	answer, err := s.say(text)
	if err != nil {
		return err
	}
	defer answer.close()
	var last *agentv1.ChatResponse
	for {
		frame, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		last = frame
	}
	if last == nil || last.FinishReason != agentv1.FinishReason_STOP {
		return fmt.Errorf("the answer ends with %v", last)
	}
	s.history = append(s.history, &agentv1.ChatMessage{Role: "assistant", Content: last.GetFullText()})
	return nil
}

// closed sends messages whose socket closes at a frame; the next message of the session must be answered.
func (s *socket) closed(at func(*agentv1.ChatResponse) bool) error {
	for number := range messages {
		answer, err := s.say(fmt.Sprintf("message %d, whose socket closes", number))
		if err != nil {
			return err
		}
		if at != nil {
			err = answer.until(at)
		}
		answer.close()
		if err != nil {
			return fmt.Errorf("message %d: %w", number, err)
		}
		if err := s.answered(fmt.Sprintf("message %d, on the next socket", number)); err != nil {
			return fmt.Errorf("the message after a closed socket, %d: %w", number, err)
		}
	}
	return nil
}

// begun sends a message, and reads its answer up to the first text.
func (s *socket) begun() (stream, error) {
	answer, err := s.say("a long answer, please")
	if err != nil {
		return answer, err
	}
	if err := answer.until(isDelta); err != nil {
		answer.close()
		return answer, err
	}
	return answer, nil
}

// overlapping sends a message while the answer to another is read.
func (s *socket) overlapping() error {
	answer, err := s.begun()
	if err != nil {
		return err
	}
	defer answer.close()
	before := s.attempts.count.Load()
	if err := s.answered("a second message"); status.Code(err) != codes.Aborted {
		return fmt.Errorf("ended with %v, want ABORTED", err)
	}
	if sent := s.attempts.count.Load() - before; sent != 1 {
		return fmt.Errorf("%d attempts", sent)
	}
	return nil
}

// overloaded sends a message to a server that answers as many as it may: UNAVAILABLE with a pushback of a second.
func (s *socket) overloaded() error {
	answer, err := s.begun()
	if err != nil {
		return err
	}
	defer answer.close()
	other := &socket{agent: s.agent, attempts: s.attempts, session: "another"}
	before, begun := s.attempts.count.Load(), time.Now()
	if err := other.answered("one too many"); status.Code(err) != codes.Unavailable {
		return fmt.Errorf("ended with %v, want UNAVAILABLE", err)
	}
	if sent := s.attempts.count.Load() - before; sent != 4 {
		return fmt.Errorf("%d attempts, want 4", sent)
	}
	if waited := time.Since(begun); waited < 3*time.Second {
		return fmt.Errorf("retried after %v, but the pushback is a second", waited)
	}
	return nil
}

type check struct {
	name string
	run  func(*socket) error
}

// checks runs a server with these variables, and prints a line per check.
func checks(server string, variables []string, all ...check) error {
	data, err := os.MkdirTemp("", "messages")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	counter := &attempts{}
	running, err := program.StartWith(server, data, []grpc.DialOption{
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithStatsHandler(counter),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}, variables...)
	if err != nil {
		return err
	}
	defer running.Stop()
	failed := false
	for _, check := range all {
		socket := &socket{agent: agentv1.NewAgentServiceClient(running.Connection), attempts: counter, session: check.name}
		if err := check.run(socket); err != nil {
			failed = true
			fmt.Printf("FAIL  %s\n      %v\n", check.name, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Printf("ok  %s\n", check.name)
	}
	if failed {
		return errors.New("checks failed")
	}
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: messages SERVER")
		os.Exit(2)
	}
	server, err := filepath.Abs(os.Args[1])
	if err == nil {
		err = checks(server, []string{"DEMO_MODE=true", "DEMO_THINKING_DELAY_MS=20", "DEMO_CHUNK_DELAY_MS=5", "RATE_LIMITS=off"},
			check{"conversation_is_answered", func(s *socket) error { return errors.Join(s.answered("hello"), s.answered("and again")) }},
			check{"message_after_a_close_midway_is_answered", func(s *socket) error { return s.closed(isDelta) }},
			check{"message_after_a_close_at_the_first_frame_is_answered", func(s *socket) error { return s.closed(isFirst) }},
			check{"message_after_a_close_before_any_frame_is_answered", func(s *socket) error { return s.closed(nil) }},
		)
	}
	slow := []string{"DEMO_MODE=true", "DEMO_THINKING_DELAY_MS=0", "DEMO_CHUNK_DELAY_MS=600000", "RATE_LIMITS=off", "SHUTDOWN_GRACE_SECONDS=0"}
	if err == nil {
		err = checks(server, slow, check{"message_while_another_is_read_is_aborted_once", (*socket).overlapping})
	}
	if err == nil {
		err = checks(server, append(slow, "MAX_CONCURRENT_STREAMS=1"), check{"overload_is_retried_as_the_pushback_says", (*socket).overloaded})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

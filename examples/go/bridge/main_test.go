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
)

// frame is what a page reads of one.
type frame struct {
	ResponseID   string `json:"response_id"`
	SessionID    string `json:"session_id"`
	RequestID    string `json:"request_id"`
	Delta        string `json:"delta"`
	FullText     string `json:"full_text"`
	FinishReason string `json:"finish_reason"`
	Error        struct {
		Code      string `json:"code"`
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

func TestOneAnswerTooManyIsRefusedAndAStopIsStillHeard(t *testing.T) {
	ctx, socket := page(t)
	running := map[string]string{} // sessions by their requests
	for range maxAnswers {
		asked := question()
		send(t, ctx, socket, asked)
		running[asked.RequestID] = ""
	}
	read := func() (last frame) {
		if err := wsjson.Read(ctx, socket, &last); err != nil {
			t.Fatal(err)
		}
		return last
	}
	for seen := 0; seen < maxAnswers; {
		if last := read(); running[last.RequestID] == "" {
			running[last.RequestID] = last.SessionID
			seen++
		}
	}
	tooMany := question()
	send(t, ctx, socket, tooMany)
	for request, session := range running {
		send(t, ctx, socket, message{SessionID: session, RequestID: request, Cancel: true})
	}
	ends := map[string]string{}
	for len(ends) < maxAnswers+1 {
		if last := read(); last.FinishReason != "" {
			ends[last.RequestID] = last.Error.Code
		}
	}
	if ends[tooMany.RequestID] != "RESOURCE_EXHAUSTED" {
		t.Errorf("one too many ended with %q", ends[tooMany.RequestID])
	}
	for request := range running {
		if ends[request] != "CANCELLED" {
			t.Errorf("one that was stopped ended with %q", ends[request])
		}
	}
}

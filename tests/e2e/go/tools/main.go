// Holds a conversation with tools, as the gateway does: the model wants two of them at once, one of
// which fails, and answers by both results.
//
// It takes the program as its argument, starts it itself beside a provider of its own, and prints one
// line per check.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sparkle/agent-service/tests/e2e/go/program"
	agentv1 "github.com/sparkle/gateway/gen/agent/v1"
)

const (
	tools = `[{"type": "function", "function": {"name": "get_weather", "parameters":
		{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]`

	// Two calls, their arguments in pieces that are mixed, as OpenAI streams them.
	wants = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"get_weather","arguments":""}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"get_weather","arguments":"{\"city\":"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":\"Paris\"}"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"\"Atlantis\"}"}}]},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: {"choices":[],"usage":{"prompt_tokens":82,"completion_tokens":17,"total_tokens":99}}

data: [DONE]

`
)

type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	ToolCallID string `json:"tool_call_id"`
}

// provider wants both tools to be called, and then says what came of them.
func provider(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Messages []message `json:"messages"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("content-type", "text/event-stream")
	var results []string
	for _, message := range request.Messages {
		if message.Role == "tool" {
			results = append(results, message.ToolCallID+"="+message.Content)
		}
	}
	if len(results) == 0 {
		_, _ = io.WriteString(w, wants)
		return
	}
	text, _ := json.Marshal(strings.Join(results, " and "))
	_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":%s},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", text)
}

type conversation struct {
	agent   agentv1.AgentServiceClient
	session string
}

// turn makes one call and gives its frames.
func (c *conversation) turn(request *agentv1.ChatRequest) ([]*agentv1.ChatResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request.UserId, request.SessionId = "ann", c.session
	stream, err := c.agent.StreamChat(ctx, request)
	if err != nil {
		return nil, err
	}
	var frames []*agentv1.ChatResponse
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return frames, err
		}
		c.session = frame.SessionId
		frames = append(frames, frame)
	}
}

func outline(frames []*agentv1.ChatResponse) string {
	var words []string
	for _, frame := range frames {
		switch content := frame.Content.(type) {
		case *agentv1.ChatResponse_StatusUpdate:
			words = append(words, content.StatusUpdate.State.String())
		case *agentv1.ChatResponse_ToolCall:
			words = append(words, content.ToolCall.Id+content.ToolCall.Arguments)
		case *agentv1.ChatResponse_Delta:
			words = append(words, "delta")
		case *agentv1.ChatResponse_Usage:
			words = append(words, "usage")
		case *agentv1.ChatResponse_FullText:
			words = append(words, content.FullText)
		case *agentv1.ChatResponse_Error:
			words = append(words, content.Error.Code)
		case nil:
		default:
			words = append(words, fmt.Sprintf("%T", content))
		}
		if frame.FinishReason != agentv1.FinishReason_NULL {
			words = append(words, frame.FinishReason.String())
		}
	}
	return strings.Join(words, " ")
}

func run(executable string) (failed int, err error) {
	data, err := os.MkdirTemp("", "tools")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(data) }()
	file := filepath.Join(data, "tools.json")
	if err := os.WriteFile(file, []byte(tools), 0o600); err != nil {
		return 0, err
	}
	model := httptest.NewServer(http.HandlerFunc(provider))
	defer model.Close()
	server, err := program.Start(executable, data,
		"LLM_PROVIDER=compatible", "LLM_API_BASE_URL="+model.URL+"/v1", "LLM_MODEL_NAME=m",
		"TOOLS_FILE="+file, "ADMISSION_TIMEOUT_MS=20000")
	if err != nil {
		return 0, err
	}
	defer server.Stop()
	talk := &conversation{agent: agentv1.NewAgentServiceClient(server.Connection)}

	off := false
	result := func(result *agentv1.ToolResult) *agentv1.ChatRequest {
		return &agentv1.ChatRequest{Input: &agentv1.ChatRequest_ToolResult{ToolResult: result}}
	}
	for _, check := range []struct {
		sentence, expected string
		request            *agentv1.ChatRequest
	}{
		{
			"two parallel calls arrive whole and in order",
			`THINKING GENERATING EXECUTING_TOOL call_a{"city":"Paris"} call_b{"city":"Atlantis"} usage TOOL_CALLS`,
			&agentv1.ChatRequest{
				Input:              &agentv1.ChatRequest_Message{Message: "How is the weather in Paris and Atlantis?"},
				ActiveTools:        []string{"get_weather"},
				UseDocumentContext: &off,
			},
		},
		{
			"the first result is taken, and the other one is waited for",
			"THINKING CONTINUE",
			result(&agentv1.ToolResult{ToolCallId: "call_b", ToolName: "get_weather", IsError: true, ErrorMessage: "no such place"}),
		},
		{
			"the last result brings an answer that is built on both, the failed one told as an error",
			`THINKING GENERATING delta usage call_a={"sky":"clear"} and call_b={"error":"no such place"} STOP`,
			result(&agentv1.ToolResult{ToolCallId: "call_a", ToolName: "get_weather", ResultJson: `{"sky":"clear"}`}),
		},
	} {
		frames, err := talk.turn(check.request)
		if actual := outline(frames); err != nil || actual != check.expected {
			failed++
			fmt.Printf("FAIL  %s\n      %q, %v\n", check.sentence, actual, err)
			continue
		}
		fmt.Printf("ok  %s\n", check.sentence)
	}
	return failed, nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: tools PROGRAM")
		os.Exit(2)
	}
	failed, err := run(os.Args[1])
	if err != nil {
		fmt.Println("FAIL  tools:", err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

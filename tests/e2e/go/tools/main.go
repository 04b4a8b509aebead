// Checks a turn with client tools, as through the gateway: the model calls two tools in parallel, one of
// which fails, and answers with both results.
//
// Takes the program as its argument, starts it with a model provider of its own, and prints one line per
// check.
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
	"google.golang.org/grpc/metadata"
)

const (
	tools = `[{"type": "function", "function": {"name": "get_weather", "parameters":
		{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]`

	// Two parallel calls with interleaved argument pieces, as OpenAI streams them.
	toolCalls = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"get_weather","arguments":""}}]},"finish_reason":null}]}

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

// provider requests both tool calls, and answers with their results.
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
		_, _ = io.WriteString(w, toolCalls)
		return
	}
	text, _ := json.Marshal(strings.Join(results, " and "))
	_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":%s},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", text)
}

type conversation struct {
	agent   agentv1.AgentServiceClient
	session string
}

// turn makes one call and returns its frames.
func (c *conversation) turn(request *agentv1.ChatRequest) ([]*agentv1.ChatResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-recall", "off")
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
	client := &conversation{agent: agentv1.NewAgentServiceClient(server.Connection)}

	result := func(result *agentv1.ToolResult) *agentv1.ChatRequest {
		return &agentv1.ChatRequest{Input: &agentv1.ChatRequest_ToolResult{ToolResult: result}}
	}
	for _, check := range []struct {
		name, expected string
		request        *agentv1.ChatRequest
	}{
		{
			"parallel_tool_calls_arrive_complete_and_ordered",
			`THINKING GENERATING EXECUTING_TOOL call_a{"city":"Paris"} call_b{"city":"Atlantis"} usage TOOL_CALLS`,
			&agentv1.ChatRequest{
				Input:       &agentv1.ChatRequest_Message{Message: "How is the weather in Paris and Atlantis?"},
				ActiveTools: []string{"get_weather"},
			},
		},
		{
			"first_tool_result_leaves_turn_pending",
			"THINKING CONTINUE",
			result(&agentv1.ToolResult{ToolCallId: "call_b", ToolName: "get_weather", IsError: true, ErrorMessage: "no such place"}),
		},
		{
			"last_tool_result_continues_turn_with_all_results",
			`THINKING GENERATING delta usage call_a={"sky":"clear"} and call_b={"error":"no such place"} STOP`,
			result(&agentv1.ToolResult{ToolCallId: "call_a", ToolName: "get_weather", ResultJson: `{"sky":"clear"}`}),
		},
	} {
		frames, err := client.turn(check.request)
		if actual := outline(frames); err != nil || actual != check.expected {
			failed++
			fmt.Printf("FAIL  %s\n      %q, %v\n", check.name, actual, err)
			continue
		}
		fmt.Printf("ok  %s\n", check.name)
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

// Package program runs the agent service with given settings.
package program

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"regexp"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Server is a started agent service.
type Server struct {
	process *exec.Cmd
	// Connection is closed by Stop.
	Connection *grpc.ClientConn
}

var address = regexp.MustCompile(`http://(127\.0\.0\.1:\d+)`)

// Start runs a program with only these environment variables and a data directory, and waits until it is ready.
func Start(program, data string, variables ...string) (*Server, error) {
	return StartWith(program, data, nil, variables...)
}

// StartWith is Start for a client with options of its own.
func StartWith(program, data string, options []grpc.DialOption, variables ...string) (*Server, error) {
	process := exec.Command(program)
	process.Dir = data
	process.Env = append([]string{
		"EMBEDDING_PROVIDER=hashed", "GRPC_PORT=0", "AGENT_DATA_DIR=" + data, "HOME=" + data, "RUST_LOG=warn",
	}, variables...)
	process.Stderr = os.Stderr
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	server := &Server{process: process}
	lines := bufio.NewScanner(stdout)
	serverAddress, ready := "", false
	for !ready && lines.Scan() {
		if match := address.FindStringSubmatch(lines.Text()); match != nil && serverAddress == "" {
			serverAddress = match[1]
		}
		ready = lines.Text() == "Ready."
	}
	if !ready || serverAddress == "" {
		server.Stop()
		return nil, errors.New("the server exited before it was ready")
	}
	// Drain stdout, so that the server never blocks on a full pipe.
	go func() {
		for lines.Scan() {
		}
	}()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	server.Connection, err = grpc.NewClient(serverAddress, options...)
	if err != nil {
		server.Stop()
		return nil, err
	}
	return server, nil
}

// Stop shuts the server down and waits for its exit.
func (s *Server) Stop() {
	if s.Connection != nil {
		_ = s.Connection.Close()
	}
	_ = s.process.Process.Signal(os.Interrupt)
	_ = s.process.Wait()
}

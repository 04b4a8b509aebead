// Package program runs the agent service for a client that needs one with settings of its own.
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

// Running is a server that has started.
type Running struct {
	process *exec.Cmd
	// Connection is open until Stop.
	Connection *grpc.ClientConn
}

var address = regexp.MustCompile(`http://(127\.0\.0\.1:\d+)`)

// Start runs a program with these variables and no others, its data in a folder, and waits until it is ready.
func Start(program, data string, variables ...string) (*Running, error) {
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
	running := &Running{process: process}
	lines := bufio.NewScanner(stdout)
	found, ready := "", false
	for !ready && lines.Scan() {
		if match := address.FindStringSubmatch(lines.Text()); match != nil && found == "" {
			found = match[1]
		}
		ready = lines.Text() == "Ready."
	}
	if !ready || found == "" {
		running.Stop()
		return nil, errors.New("the server did not start")
	}
	// What it prints later is read, so that it never waits for a reader.
	go func() {
		for lines.Scan() {
		}
	}()
	running.Connection, err = grpc.NewClient(found, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		running.Stop()
		return nil, err
	}
	return running, nil
}

// Stop ends the server and waits for its end.
func (r *Running) Stop() {
	if r.Connection != nil {
		_ = r.Connection.Close()
	}
	_ = r.process.Process.Signal(os.Interrupt)
	_ = r.process.Wait()
}

// SPDX-License-Identifier: Apache-2.0

// Command pod is what containers run in the tests with real container runtimes: alone in an image without anything else.
//
//	pod serve PORT NAME    answers every TCP connection with the name and the container's addresses, a line of JSON
//	pod ask ADDRESS:PORT   prints what it is answered, at most ten seconds later
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// patience is how long ask tries.
const patience = 10 * time.Second

// answer is what serve says.
type answer struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"` // of all interfaces, with their prefix lengths
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return serve(ctx, args[1], args[2])
	case len(args) == 2 && args[0] == "ask":
		return ask(args[1])
	}
	return errors.New("usage: pod serve PORT NAME | pod ask ADDRESS:PORT")
}

// serve answers until the context ends: init of a container has no other way to end than to be told.
func serve(ctx context.Context, port, name string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort("", port))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := tell(conn, name); err != nil {
			fmt.Fprintln(os.Stderr, "pod:", err)
		}
	}
}

func tell(conn net.Conn, name string) error {
	a := answer{Name: name}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	for _, x := range addrs {
		a.Addresses = append(a.Addresses, x.String())
	}
	return errors.Join(json.NewEncoder(conn).Encode(a), conn.Close())
}

func ask(address string) error {
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if last = err; err != nil {
			continue
		}
		text, err := io.ReadAll(conn)
		if err == nil {
			_, err = os.Stdout.Write(text)
		}
		return errors.Join(err, conn.Close())
	}
	return last
}

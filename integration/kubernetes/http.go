// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// get asks for the URL from the network namespace of the calling thread, which what net/http does by itself would leave.
func get(url string) error {
	_, err := fetch(url)
	return err
}

// fetch is get that returns what was answered, 64 KiB of it at most.
func fetch(url string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	conn, err := net.DialTimeout("tcp", req.URL.Host, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if err := req.Write(conn); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	return string(text), err
}

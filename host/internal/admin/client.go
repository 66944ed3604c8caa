package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
)

// Client talks to a running host through its control socket. Not for concurrent use.
type Client struct {
	socket  string
	http    *http.Client
	version string
}

// ErrNotRunning is returned when nobody answers at the socket.
var ErrNotRunning = errors.New("no host is running")

// NewClient makes a client of the host whose control socket is at path. Nothing is connected yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Version of the host as the last answer told; "" before the first.
func (c *Client) Version() string { return c.version }

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for path (escaped) with query and decodes the answer into answer.
func (c *Client) Get(ctx context.Context, path string, query url.Values, answer any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, answer)
}

// Post sends body as JSON and decodes the answer into answer.
func (c *Client) Post(ctx context.Context, path string, body, answer any) error {
	return c.do(ctx, http.MethodPost, path, nil, body, answer)
}

// Delete deletes what path with query names and decodes the answer into answer.
func (c *Client) Delete(ctx context.Context, path string, query url.Values, answer any) error {
	return c.do(ctx, http.MethodDelete, path, query, nil, answer)
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body, answer any) error {
	response, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("reading the answer of the host: %w", err)
	}
	return nil
}

// Raw copies the answer to out as it is.
func (c *Client) Raw(ctx context.Context, path string, out io.Writer) error {
	response, err := c.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		return fmt.Errorf("reading the answer of the host: %w", err)
	}
	return nil
}

// Lines calls fn for each JSON line of the answer, until it ends, ctx ends or fn fails. body may be nil.
func (c *Client) Lines(ctx context.Context, method, path string, query url.Values, body any, fn func(line []byte) error) error {
	response, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	for {
		line, err := lines.ReadBytes('\n')
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return nil
		default:
			return fmt.Errorf("reading the answer of the host: %w", err)
		}
		if err := fn(bytes.TrimSpace(line)); err != nil {
			return err
		}
	}
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	target := "http://postern" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, target, content)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	c.version = response.Header.Get(VersionHeader)
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, problem(response)
	}
	return response, nil
}

// explain turns the errors of a socket into what an operator can do something about.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers at %s", ErrNotRunning, c.socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("control socket %s: permission denied: only root and the user of the host may use it", c.socket)
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return fmt.Errorf("control socket %s: %w", c.socket, err)
}

// RemoteError is a Problem that the host answered with.
type RemoteError struct {
	Problem
	Status int // of HTTP
}

// Error implements error.
func (e *RemoteError) Error() string { return e.Problem.Error }

func problem(response *http.Response) error {
	e := &RemoteError{Status: response.StatusCode}
	if json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&e.Problem) != nil || e.Problem.Error == "" {
		e.Problem = Problem{Error: "the host answered " + response.Status}
	}
	return e
}

package main

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"
)

// pool keeps idle connections to one engine.
type pool struct {
	max  int
	dial func(context.Context) (net.Conn, error)

	mu   sync.Mutex
	idle []*connection
}

// connection to an engine.
type connection struct {
	net.Conn
	in   *bufio.Reader
	idle time.Time // since when
}

// idleFor is how long a connection is kept; clamd ends a session after its IdleTimeout, 30 seconds by default.
const idleFor = 15 * time.Second

// maxLine of an engine's answer that is read, in octets.
const maxLine = 8 << 10

// borrow a connection: an idle one, unless a fresh one is wanted.
func (p *pool) borrow(ctx context.Context, fresh bool) (*connection, error) {
	if c := p.take(); c != nil && !fresh {
		return c, nil
	} else if c != nil {
		c.Close() // its like has just failed
	}
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: conn, in: bufio.NewReaderSize(conn, maxLine)}, nil
}

func (p *pool) take() *connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if time.Since(c.idle) < idleFor {
			return c
		}
		c.Close()
	}
	return nil
}

// giveBack a connection that can be used again.
func (p *pool) giveBack(c *connection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= p.max {
		c.Close()
		return
	}
	c.idle = time.Now()
	p.idle = append(p.idle, c)
}

// close all that are idle.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// talk has use speak on a connection, which ends with ctx. use reports whether the connection can be used again. Where that
// fails it is tried once again, on a new one: an engine that is restarted ends those that are idle, and what it was just given.
func (p *pool) talk(ctx context.Context, use func(*connection) (again bool, err error)) error {
	for fresh := false; ; fresh = true {
		c, err := p.borrow(ctx, fresh)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		again, err := use(c)
		if stop() && again && err == nil {
			p.giveBack(c)
			return nil
		}
		c.Close()
		if err == nil || fresh || ctx.Err() != nil {
			return err
		}
	}
}

package wire

import (
	"io"
	"time"
)

// Bounds of reading a message that is not kept.
const (
	maxAmbiguous  = 1 << 20
	ambiguousTime = 10 * time.Second
)

// Body reads the message after a 354.
type Body struct {
	c      *Conn
	framer framer
	moving bool      // octets of a message are expected: the timeout of the connection stands still
	began  time.Time // of moving
	until  time.Time // deadline of draining; zero: none
	vain   int64     // octets read since the message was given up
	given  bool
	ended  bool
	err    error
}

// Body begins the body of a message. The session calls it after 354 was said, that is in Data.
func (c *Conn) Body() *Body {
	c.body = Body{c: c}
	c.startMoving()
	return &c.body
}

// startMoving stops the clock of the connection.
func (c *Conn) startMoving() {
	c.body.moving, c.body.began = true, time.Now()
	c.in.large = true
}

// stopMoving lets it run again.
func (c *Conn) stopMoving() {
	if c.body.moving {
		c.until = c.until.Add(time.Since(c.body.began))
	}
	c.body.moving, c.body.until = false, time.Time{}
	c.in.large = false
}

// GiveUp says that the rest of the message is not wanted. It is still read, up to a bound.
func (b *Body) GiveUp() { b.given = true }

// Next answers with the next octets of the message, dots unstuffed, valid until the next call. At the end of the data
// the error is io.EOF; a Fault when the message is ambiguous, which has been drained then and after which the
// connection must end; any other error says that the connection is over.
func (b *Body) Next() ([]byte, error) {
	for b.err == nil && !b.ended {
		fr := b.framer.next(b.c.in.unread())
		b.c.in.take(fr.used)
		switch {
		case fr.fault != "":
			b.drain(fr)
			b.finish(fr.fault)
		case fr.end:
			b.finish(io.EOF)
		case len(fr.piece) > 0:
			if !b.bounded(len(fr.piece)) {
				b.c.lost(io.ErrUnexpectedEOF)
				b.finish(io.ErrUnexpectedEOF)
				break
			}
			return fr.piece, nil
		default:
			if err := b.c.fill(); err != nil {
				b.c.lost(err)
				b.finish(err)
			}
		}
	}
	return nil, b.err
}

// bounded counts what is read in vain.
func (b *Body) bounded(n int) bool {
	if !b.given {
		return true
	}
	b.vain += int64(n)
	return b.vain <= b.c.opt.MaxDrain
}

// finish ends the body. go-smtp gets the terminator alone.
func (b *Body) finish(err error) {
	b.err, b.ended = err, true
	b.c.stopMoving()
	b.c.fed = append(b.c.fed, fed{line: "."})
}

// drain reads an ambiguous message up to the first line that anyone could take for its end, or 1 MiB, or 10 seconds.
func (b *Body) drain(fr frame) {
	d := drainer{}
	if fr.dot {
		d.state = behindDot
	}
	b.until = time.Now().Add(ambiguousTime)
	for n := 0; n < maxAmbiguous; {
		p := b.c.in.unread()
		n += len(p)
		b.c.in.take(len(p))
		if d.next(p) || b.c.fill() != nil {
			return
		}
	}
}

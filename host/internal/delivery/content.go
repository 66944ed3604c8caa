package delivery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/posternmail/postern/host/internal/queue"
)

// smallContent is what goes to a next hop in one write. What is larger is sent in blocks of this size.
const smallContent = 64 << 10

// errBareLine: RFC 5321 section 2.3.8 has no CR and no LF but in CRLF, and a lone one is how a second message is
// smuggled into the first. The front refuses such mail; this is the last look at what an agent may have made.
var errBareLine = errors.New("message holds a CR or LF that is no line end")

// content of an item, as it is sent.
type content struct {
	head       []byte // prefix, header and empty line
	item       *queue.Item
	size       int64  // octets, without what dot-stuffing adds
	wire       []byte // stuffed and with the final dot, when it is small
	headEight  bool   // the header's own fields hold octets over 127
	eightBit   bool   // anything does; known for small content only
	eightKnown bool
}

// newContent checks and prepares the message of item. The error is errBareLine or one of reading the body.
func newContent(item *queue.Item) (*content, error) {
	m := item.Mail
	c := &content{item: item, headEight: eightBit(m.Header)}
	c.head = make([]byte, 0, len(item.Prefix)+len(m.Header)+2)
	c.head = append(append(append(c.head, item.Prefix...), m.Header...), '\r', '\n')
	c.size = int64(len(c.head))
	if m.Body != nil {
		c.size += m.Body.Size()
	}
	if c.size > smallContent {
		var s stuffer
		_, err := s.append(nil, c.head)
		c.eightBit = s.eight
		return c, err
	}
	return c, c.stuffSmall()
}

// stuffSmall prepares the one write of a small message.
func (c *content) stuffSmall() error {
	buf := bytes.NewBuffer(make([]byte, 0, c.size+c.size/32+64))
	if err := c.stuff(buf, &c.eightBit); err != nil {
		return err
	}
	c.wire, c.eightKnown = buf.Bytes(), true
	return nil
}

// stuff writes the message as it goes out, in blocks, with the final dot.
func (c *content) stuff(w io.Writer, eight *bool) error {
	var s stuffer
	var out []byte
	err := c.blocks(func(block []byte) error {
		var err error
		if out, err = s.append(out[:0], block); err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	})
	if err != nil {
		return err
	}
	if out, err = s.end(out[:0]); err != nil {
		return err
	}
	*eight = s.eight
	_, err = w.Write(out)
	return err
}

// blocks calls fn for the message from its start. A block is fn's until it returns.
func (c *content) blocks(fn func([]byte) error) error {
	if err := fn(c.head); err != nil {
		return err
	}
	body := c.item.Mail.Body
	if body == nil {
		return nil
	}
	if body.InMemory() && body.Size() <= smallContent {
		return fn(body.Bytes())
	}
	buf := make([]byte, smallContent)
	for r := body.Reader(); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := fn(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading body: %w", err)
		}
	}
}

// isEightBit reports whether any octet is over 127. For large content it reads the body, once.
func (c *content) isEightBit() (bool, error) {
	if c.eightBit || c.eightKnown {
		return c.eightBit, nil
	}
	err := c.blocks(func(b []byte) error {
		c.eightBit = c.eightBit || eightBit(b)
		return nil
	})
	c.eightKnown = err == nil
	return c.eightBit, err
}

// stuffer makes content transparent (RFC 5321 section 4.5.2), block by block, and checks its line ends.
type stuffer struct {
	midLine bool
	cr      bool // the last octet was a CR
	eight   bool
}

// append adds block to dst, each line that starts with a dot with one more.
func (s *stuffer) append(dst, block []byte) ([]byte, error) {
	if len(block) == 0 {
		return dst, nil
	}
	if !s.check(block) {
		return dst, errBareLine
	}
	s.eight = s.eight || eightBit(block)
	if !s.midLine && block[0] == '.' {
		dst = append(dst, '.')
	}
	s.midLine = block[len(block)-1] != '\n'
	for {
		i := bytes.Index(block, lineDot)
		if i < 0 {
			return append(dst, block...), nil
		}
		dst = append(append(dst, block[:i+2]...), '.')
		block = block[i+2:]
	}
}

var lineDot = []byte("\n.")

// end adds the final dot. A last line without its end gets one (RFC 5321 section 4.1.1.4).
func (s *stuffer) end(dst []byte) ([]byte, error) {
	if s.cr {
		return dst, errBareLine
	}
	if s.midLine {
		dst = append(dst, '\r', '\n')
	}
	return append(dst, '.', '\r', '\n'), nil
}

// check reports whether CR and LF stand only together, over the bounds of blocks too.
func (s *stuffer) check(b []byte) bool {
	if s.cr {
		if b[0] != '\n' {
			return false
		}
		s.cr = false
		b = b[1:]
	}
	for {
		i := bytes.IndexByte(b, '\r')
		if i < 0 {
			return bytes.IndexByte(b, '\n') < 0
		}
		if bytes.IndexByte(b[:i], '\n') >= 0 {
			return false
		}
		if i+1 == len(b) {
			s.cr = true
			return true
		}
		if b[i+1] != '\n' {
			return false
		}
		b = b[i+2:]
	}
}

// eightBit reports whether b holds an octet over 127.
func eightBit(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

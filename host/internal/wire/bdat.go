package wire

import (
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
)

// bdat carries out BDAT (RFC 3030 section 2): the chunk goes to the session, and go-smtp only sees the last one, without
// octets. True: go-smtp is to see the line handed to it.
func (c *Conn) bdat() bool {
	chunk, ok := parseChunk(c.cmd.Arg)
	if !ok {
		// What follows may be a chunk of any size or commands: there is no way to go on.
		c.say(Answer{
			Reply: envelope.Reply{Code: 501, Enhanced: "5.5.4", Text: "Malformed BDAT, closing transmission channel"},
			Close: true, End: EndProtocol,
		})
		return false
	}
	c.cmd.Chunk = &chunk
	a, pass := c.judge.Command(&c.cmd)
	if !c.readChunk(chunk.Size, pass) {
		return false
	}
	switch {
	case !pass:
		c.say(a)
	case chunk.Last:
		c.answer = a
		c.hand("BDAT 0 LAST")
		return true
	default:
		c.endChunk(chunk.Size)
	}
	return false
}

// endChunk answers a chunk that is not the last. RFC 3030 section 4.2: after a refusal the transaction is over.
func (c *Conn) endChunk(size int64) {
	a := c.judge.EndOfChunk(size)
	if a.Reply.Code >= 400 {
		c.Feed("RSET")
	}
	c.say(a)
}

// parseChunk reads the argument of BDAT: chunk-size = 1*DIGIT, and LAST.
func parseChunk(arg string) (Chunk, bool) {
	size, last, more := strings.Cut(arg, " ")
	if more && !strings.EqualFold(strings.TrimSpace(last), "LAST") {
		return Chunk{}, false
	}
	if size == "" || strings.Trim(size, "0123456789") != "" {
		return Chunk{}, false
	}
	n, err := strconv.ParseInt(size, 10, 64)
	return Chunk{Size: n, Last: more}, err == nil
}

// readChunk reads the octets of a chunk, for the session when it is wanted. False: the connection is over.
func (c *Conn) readChunk(size int64, wanted bool) bool {
	if size > c.opt.MaxDrain {
		c.say(Answer{Reply: tooLarge, Close: true, End: EndProtocol})
		return false
	}
	c.body = Body{c: c}
	c.startMoving()
	defer c.stopMoving()
	for size > 0 {
		p := c.in.unread()
		if int64(len(p)) > size {
			p = p[:size]
		}
		c.in.take(len(p))
		size -= int64(len(p))
		if wanted {
			c.judge.Chunk(p)
		}
		if size == 0 {
			break
		}
		if err := c.fill(); err != nil {
			c.lost(err)
			return false
		}
	}
	return true
}

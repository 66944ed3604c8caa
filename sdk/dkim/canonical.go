package dkim

import "strings"

// RelaxedField is a header field in the relaxed form (RFC 6376 section 3.4.2), with its line end.
func RelaxedField(field string) string {
	name, value, _ := strings.Cut(field, ":")
	var b strings.Builder
	b.Grow(len(field) + 2)
	b.WriteString(strings.ToLower(strings.TrimRight(name, " \t")))
	b.WriteByte(':')
	space, begun := false, false
	for i := range len(value) {
		switch c := value[i]; c {
		case '\r', '\n': // unfolded
		case ' ', '\t':
			space = true
		default:
			if space && begun {
				b.WriteByte(' ')
			}
			space, begun = false, true
			b.WriteByte(c)
		}
	}
	b.WriteString("\r\n")
	return b.String()
}

// canonicalField in the form that a signature names.
func canonicalField(field string, relaxed bool) string {
	if relaxed {
		return RelaxedField(field)
	}
	return field + "\r\n"
}

// canonicalBody writes a body in its simple or relaxed form (RFC 6376 sections 3.4.3 and 3.4.4).
type canonicalBody struct {
	w       *limitedHash
	relaxed bool

	cr      bool // a CR was read, which may belong to a line end
	space   bool // white space was read that may end the line
	ends    int  // line ends that may be the last ones
	started bool // something was written
	buffer  []byte
}

// Write implements io.Writer.
func (c *canonicalBody) Write(p []byte) (int, error) {
	for _, octet := range p {
		c.add(octet)
	}
	c.flush()
	return len(p), nil
}

func (c *canonicalBody) add(octet byte) {
	if c.cr {
		c.cr = false
		if octet == '\n' {
			c.space = false
			c.ends++
			return
		}
		c.put('\r')
	}
	switch {
	case octet == '\r':
		c.cr = true
	case c.relaxed && (octet == ' ' || octet == '\t'):
		c.space = true
	default:
		c.put(octet)
	}
}

// put an octet that stays, and before it what turned out to stay.
func (c *canonicalBody) put(octet byte) {
	for ; c.ends > 0; c.ends-- {
		c.buffer = append(c.buffer, '\r', '\n')
		if len(c.buffer) > 32<<10 {
			c.flush()
		}
	}
	if c.space {
		c.buffer = append(c.buffer, ' ')
		c.space = false
	}
	c.buffer = append(c.buffer, octet)
	c.started = true
}

func (c *canonicalBody) flush() {
	c.w.write(c.buffer)
	c.buffer = c.buffer[:0]
}

// end of the body: one line end, which an empty relaxed body does not have.
func (c *canonicalBody) end() {
	if c.cr {
		c.put('\r')
	}
	c.flush()
	if c.started || !c.relaxed {
		c.w.write([]byte("\r\n"))
	}
}

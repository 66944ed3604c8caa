package wire

import "bytes"

// Fault is an ambiguous message: octets that another server may read as the end of a line or of the data (RFC 5321
// section 2.3.8: CR and LF must not stand alone). Such a message is never kept.
type Fault string

// Error implements error.
func (f Fault) Error() string { return string(f) }

// Faults of a message.
const (
	BareCR = Fault("Bare carriage return in message")
	BareLF = Fault("Bare line feed in message")
)

// framer takes the octets after 354 apart: transparency of RFC 5321 section 4.5.2 and the end of the data. It looks at
// whole buffers with the search functions of the runtime, not at single octets.
type framer struct {
	mid bool // the octets before were not the end of a line
}

// frame is what the framer found at the start of a buffer.
type frame struct {
	piece []byte // of the message, without stuffed dots; may be empty
	used  int    // octets of the buffer that are done with
	end   bool   // the data has ended
	fault Fault  // at used; the message cannot be kept
	dot   bool   // with fault: its line so far is a single dot
}

// next looks at b. Nothing used, no end and no fault: more is needed to go on.
func (f *framer) next(b []byte) frame {
	start := 0
	if !f.mid && len(b) > 0 && b[0] == '.' {
		switch {
		case len(b) == 1, len(b) == 2 && b[1] == '\r':
			return frame{}
		case b[1] == '\n':
			return frame{used: 1, fault: BareLF, dot: true}
		case b[1] == '\r' && b[2] == '\n':
			return frame{used: 3, end: true}
		case b[1] == '\r':
			return frame{used: 1, fault: BareCR, dot: true}
		}
		start = 1
	}
	return f.run(b, start)
}

// run takes lines from start on, up to the next line that begins with a dot.
func (f *framer) run(b []byte, start int) frame {
	end, lines := start, 0
	for {
		i := bytes.IndexByte(b[end:], '\n')
		if i < 0 {
			return f.tail(b, start, end, lines)
		}
		lines++
		end += i + 1
		if end < 2 || b[end-2] != '\r' {
			return faultIn(b, start)
		}
		if end < len(b) && b[end] == '.' {
			break
		}
	}
	if bytes.Count(b[start:end], []byte{'\r'}) != lines {
		return faultIn(b, start)
	}
	f.mid = false
	return frame{piece: b[start:end], used: end}
}

// tail ends a run with a line of which the end has not come yet. A CR at the end is left: what follows decides.
func (f *framer) tail(b []byte, start, lineStart, lines int) frame {
	end := len(b)
	if end > start && b[end-1] == '\r' {
		end--
	}
	if bytes.Count(b[start:end], []byte{'\r'}) != lines {
		return faultIn(b, start)
	}
	if end == start {
		// Only a stuffed dot, or only a CR: nothing that can be decided.
		return frame{}
	}
	f.mid = end > lineStart
	return frame{piece: b[start:end], used: end}
}

// faultIn finds the first CR or LF from start on that stands alone.
func faultIn(b []byte, start int) frame {
	for i := start; i < len(b); i++ {
		switch {
		case b[i] == '\r' && i+1 < len(b) && b[i+1] == '\n':
			i++
		case b[i] == '\r':
			return frame{used: i, fault: BareCR}
		case b[i] == '\n':
			return frame{used: i, fault: BareLF}
		}
	}
	return frame{}
}

// drainer looks for the first line that is a single dot, whatever its line ends are, behind a fault.
type drainer struct {
	state drainState
}

type drainState uint8

const (
	inText drainState = iota
	atLineStart
	behindDot
)

// next looks at b and reports whether the line was found.
func (d *drainer) next(b []byte) bool {
	for _, c := range b {
		lineEnd := c == '\r' || c == '\n'
		switch {
		case lineEnd && d.state == behindDot:
			return true
		case lineEnd:
			d.state = atLineStart
		case c == '.' && d.state == atLineStart:
			d.state = behindDot
		default:
			d.state = inText
		}
	}
	return false
}

// LineChecker finds a CR or LF that stands alone in octets that have no transparency: the chunks of BDAT.
type LineChecker struct {
	cr bool // the octets so far end with CR
}

// Open reports whether the octets so far end with a CR that waits for its LF.
func (l *LineChecker) Open() bool { return l.cr }

// Check looks at the next octets; the fault is empty when there is none.
func (l *LineChecker) Check(b []byte) Fault {
	if len(b) == 0 {
		return ""
	}
	if l.cr {
		if b[0] != '\n' {
			return BareCR
		}
		b = b[1:]
	}
	l.cr = len(b) > 0 && b[len(b)-1] == '\r'
	if l.cr {
		b = b[:len(b)-1]
	}
	pairs := bytes.Count(b, []byte("\r\n"))
	switch {
	case bytes.Count(b, []byte{'\n'}) != pairs:
		return BareLF
	case bytes.Count(b, []byte{'\r'}) != pairs:
		return BareCR
	}
	return ""
}

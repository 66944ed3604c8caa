package wire

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// frames runs octets through the framer in pieces of given sizes, as a connection would.
func frames(in []byte, sizes func() int) (out []byte, rest []byte, ended bool, fault Fault) {
	f := &framer{}
	var buf []byte
	for {
		fr := f.next(buf)
		out = append(out, fr.piece...)
		buf = buf[fr.used:]
		switch {
		case fr.fault != "":
			return out, append(buf, in...), false, fr.fault
		case fr.end:
			return out, append(buf, in...), true, ""
		case fr.used == 0:
			if len(in) == 0 {
				return out, buf, false, ""
			}
			n := min(sizes(), len(in))
			buf = append(bytes.Clone(buf), in[:n]...)
			in = in[n:]
		}
	}
}

// slow is the framer octet by octet, as RFC 5321 section 4.5.2 reads.
func slow(in []byte) (out []byte, rest []byte, ended bool, fault Fault) {
	for len(in) > 0 {
		i := bytes.IndexAny(in, "\r\n")
		switch {
		case i < 0:
			return out, in, false, ""
		case in[i] == '\n':
			return out, in, false, BareLF
		case i+1 == len(in):
			return out, in, false, ""
		case in[i+1] != '\n':
			return out, in, false, BareCR
		case string(in[:i]) == ".":
			return out, in[i+2:], true, ""
		}
		out = append(out, bytes.TrimPrefix(in[:i+2], []byte("."))...)
		in = in[i+2:]
	}
	return out, nil, false, ""
}

func TestFramer(t *testing.T) {
	tests := []struct {
		in, out, rest string
		ended         bool
		fault         Fault
	}{
		{".\r\n", "", "", true, ""},
		{"a\r\n.\r\nQUIT\r\n", "a\r\n", "QUIT\r\n", true, ""},
		{"..\r\n.\r\n", ".\r\n", "", true, ""},
		{".a\r\n.b.\r\n\r\n.\r\n", "a\r\nb.\r\n\r\n", "", true, ""},
		{"a\nb\r\n.\r\n", "", "", false, BareLF},
		{"a\rb\r\n.\r\n", "", "", false, BareCR},
		{"a\r\r\n.\r\n", "", "", false, BareCR},
		{"a\r\n.\n", "", "", false, BareLF},
		{"a\r\n.\rb", "", "", false, BareCR},
		{"\n", "", "", false, BareLF},
		{"a\r\n.\x00\r\n.\r\n", "a\r\n\x00\r\n", "", true, ""},
		{"a\r\n\x00.\r\n.\r\n", "a\r\n\x00.\r\n", "", true, ""},
	}
	for _, test := range tests {
		for size := 1; size < 6; size++ {
			out, rest, ended, fault := frames([]byte(test.in), func() int { return size })
			if ended != test.ended || fault != test.fault {
				t.Errorf("%q by %d: ended %v fault %q", test.in, size, ended, fault)
			}
			if test.ended && (string(out) != test.out || string(rest) != test.rest) {
				t.Errorf("%q by %d: %q rest %q", test.in, size, out, rest)
			}
		}
	}
}

// Whatever comes, in whatever pieces: the framer and the slow reading agree.
func FuzzFramer(f *testing.F) {
	for _, s := range []string{".\r\n", "a\r\n.\r\nb", "..\r\n.\r\n", "\r\n.\n", "\n.\r\n", ".\r", "\r\n.\r\r\n", "a\r", "a\r\n.."} {
		f.Add([]byte(s), uint64(1))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, seed))
		out, rest, ended, fault := frames(in, func() int { return 1 + r.IntN(9) })
		wantOut, wantRest, wantEnded, wantFault := slow(in)
		if ended != wantEnded || fault != wantFault {
			t.Fatalf("%q: ended %v fault %q, want %v %q", in, ended, fault, wantEnded, wantFault)
		}
		if ended && (!bytes.Equal(out, wantOut) || !bytes.Equal(rest, wantRest)) {
			t.Fatalf("%q: %q rest %q, want %q rest %q", in, out, rest, wantOut, wantRest)
		}
		// What is handed out has no line end that stands alone and, stuffed again, no other end of data.
		if ended {
			again, _, ok, _ := slow(append(stuff(out), ".\r\n"...))
			if !ok || !bytes.Equal(again, out) {
				t.Fatalf("%q does not survive another hop", out)
			}
		}
	})
}

func stuff(b []byte) []byte {
	var out []byte
	for _, line := range bytes.SplitAfter(b, []byte("\r\n")) {
		if bytes.HasPrefix(line, []byte(".")) {
			out = append(out, '.')
		}
		out = append(out, line...)
	}
	return out
}

func TestLineChecker(t *testing.T) {
	tests := []struct {
		chunks []string
		fault  Fault
		open   bool
	}{
		{[]string{"a\r\nb\r\n"}, "", false},
		{[]string{"a\r", "\nb"}, "", false},
		{[]string{"a\r"}, "", true},
		{[]string{"a\r", "b"}, BareCR, false},
		{[]string{"a\n"}, BareLF, false},
		{[]string{"\n"}, BareLF, false},
		{[]string{"\r", "\n", "\n"}, BareLF, false},
		{[]string{"\r\r\n"}, BareCR, false},
		{[]string{"\r", "\r"}, BareCR, false},
		{[]string{".\r\n", "", ".\r\n"}, "", false},
	}
	for _, test := range tests {
		l, fault := LineChecker{}, Fault("")
		for _, c := range test.chunks {
			if fault == "" {
				fault = l.Check([]byte(c))
			}
		}
		if fault != test.fault || fault == "" && l.Open() != test.open {
			t.Errorf("%q: %q, open %v", test.chunks, fault, l.Open())
		}
	}
}

func TestDrainer(t *testing.T) {
	for _, eol := range []string{"\r\n", "\n", "\r"} {
		d := drainer{}
		if !d.next([]byte("x"+eol+".")) && !d.next([]byte(eol)) {
			t.Errorf("dot line with %q not found", eol)
		}
	}
	d := drainer{}
	if d.next([]byte("x\r\n..\r\n.x\r\n x.\r\n")) {
		t.Error("found a dot line where none is")
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"MAIL FROM:<a@b>\r\n", "NOOP\n", "\x00\r\n", "BDAT 1 LAST\r\n", "rcpt to:<\"a b\"@c> NOTIFY=NEVER\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		c := parseCommand(line)
		if c.Fault == "" && strings.ContainsAny(c.Line+c.Verb+c.Arg, "\r\n\x00") {
			t.Fatalf("%q: %+v", line, c)
		}
		parseChunk(c.Arg)
	})
}

func TestParseChunk(t *testing.T) {
	good := map[string]Chunk{"0": {}, "10": {Size: 10}, "10 LAST": {10, true}, "0 last": {0, true}, "7  LAST": {7, true}}
	for arg, want := range good {
		if got, ok := parseChunk(arg); !ok || got != want {
			t.Errorf("%q: %+v %v", arg, got, ok)
		}
	}
	for _, arg := range []string{"", "-1", "+1", "0x10", "1.5", "99999999999999999999", "10 LAS", "10 LAST x", "LAST", "ten", "1\t2"} {
		if got, ok := parseChunk(arg); ok {
			t.Errorf("%q: %+v", arg, got)
		}
	}
}

func BenchmarkFramer50KB(b *testing.B) {
	msg := append(bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), 640), ".\r\n"...)
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		f := &framer{}
		for in := msg; ; {
			fr := f.next(in)
			in = in[fr.used:]
			if fr.end {
				break
			}
		}
	}
}

package pipeline

import (
	"bytes"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// headerNeed is HeaderNeed ready for use.
type headerNeed struct {
	all   bool
	names []string
}

func newHeaderNeed(n *agentpb.HeaderNeed) headerNeed {
	return headerNeed{all: n.GetAll(), names: n.GetNames()}
}

func (n headerNeed) any() bool { return n.all || len(n.names) > 0 }

func (n headerNeed) has(name []byte) bool {
	if n.all {
		return true
	}
	for _, want := range n.names {
		if equalName(name, want) {
			return true
		}
	}
	return false
}

// equalName compares the name of a field without case and without the blanks that RFC 5322 section 4.5.8 allows
// before the colon.
func equalName(name []byte, want string) bool {
	name = bytes.TrimRight(name, " \t")
	return len(name) == len(want) && strings.EqualFold(string(name), want)
}

// block is a header block taken apart. Lines that are no field belong to no field and stay where they are.
type block struct {
	raw    []byte
	fields []field
	wire   []byte // all fields as Event.headers, made when first wanted
}

// field of a block: raw[start:end] with its folds and line end.
type field struct{ start, colon, end int }

// parseBlock takes raw apart. It never fails: what is no field is skipped, with the folds that follow it.
func parseBlock(raw []byte) *block {
	b := &block{raw: raw}
	inField := false
	for pos := 0; pos < len(raw); {
		end := len(raw)
		if i := bytes.IndexByte(raw[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		switch line := raw[pos:end]; {
		case line[0] == ' ' || line[0] == '\t':
			if inField {
				b.fields[len(b.fields)-1].end = end
			}
		default:
			colon := bytes.IndexByte(line, ':')
			if inField = isFieldName(line, colon); inField {
				b.fields = append(b.fields, field{pos, pos + colon, end})
			}
		}
		pos = end
	}
	return b
}

// isFieldName follows field-name of RFC 5322 section 2.2, and takes blanks before the colon (section 4.5.8).
func isFieldName(line []byte, colon int) bool {
	if colon <= 0 {
		return false
	}
	name := bytes.TrimRight(line[:colon], " \t")
	return len(name) > 0 && isName(name)
}

func isName(name []byte) bool {
	for _, c := range name {
		if c < 33 || c > 126 || c == ':' {
			return false
		}
	}
	return len(name) > 0
}

func (b *block) name(i int) []byte { return b.raw[b.fields[i].start:b.fields[i].colon] }

// value is what follows the colon, without the final line end.
func (b *block) value(i int) []byte {
	v := b.raw[b.fields[i].colon+1 : b.fields[i].end]
	v = bytes.TrimSuffix(v, []byte("\n"))
	return bytes.TrimSuffix(v, []byte("\r"))
}

// find is the index of the first field of that name, or -1.
func (b *block) find(name string) int {
	for i := range b.fields {
		if equalName(b.name(i), name) {
			return i
		}
	}
	return -1
}

// count is the number of fields of that name.
func (b *block) count(name string) (n int) {
	for i := range b.fields {
		if equalName(b.name(i), name) {
			n++
		}
	}
	return n
}

// text is the value of the first field of that name, without the blanks around it; empty when there is none.
func (b *block) text(name string) []byte {
	if i := b.find(name); i >= 0 {
		return bytes.TrimSpace(b.value(i))
	}
	return nil
}

// appendWire appends the fields that need asks for as Event.headers.
func (b *block) appendWire(dst []byte, need headerNeed) []byte {
	if !need.all {
		return b.encode(dst, need)
	}
	if b.wire == nil {
		b.wire = b.encode(make([]byte, 0, len(b.raw)+12*len(b.fields)), need)
	}
	if dst == nil {
		return b.wire
	}
	return append(dst, b.wire...)
}

// Field numbers of Event.headers and HeaderField. Written by hand: a message's fields are sent to every agent.
const (
	eventHeaders     = 4
	headerFieldName  = 1
	headerFieldValue = 2
	headerFieldIndex = 3
)

func (b *block) encode(dst []byte, need headerNeed) []byte {
	for i := range b.fields {
		name, value := b.name(i), b.value(i)
		if !need.has(name) {
			continue
		}
		size := protowire.SizeTag(headerFieldName) + protowire.SizeBytes(len(name)) + protowire.SizeTag(headerFieldValue) +
			protowire.SizeBytes(len(value)) + protowire.SizeTag(headerFieldIndex) + protowire.SizeVarint(uint64(i))
		dst = protowire.AppendTag(dst, eventHeaders, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(size))
		dst = protowire.AppendTag(dst, headerFieldName, protowire.BytesType)
		dst = protowire.AppendBytes(dst, name)
		dst = protowire.AppendTag(dst, headerFieldValue, protowire.BytesType)
		dst = protowire.AppendBytes(dst, value)
		dst = protowire.AppendTag(dst, headerFieldIndex, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(i))
	}
	return dst
}

// headerEdits are changes to a block, by the indexes of that block. A nil value of replaced removes the field.
type headerEdits struct {
	replaced map[int][]byte
	first    [][]byte // new fields in front, the last one added first
	last     [][]byte
}

func (e *headerEdits) empty() bool { return len(e.replaced)+len(e.first)+len(e.last) == 0 }

func (e *headerEdits) clone() headerEdits {
	c := headerEdits{first: append([][]byte(nil), e.first...), last: append([][]byte(nil), e.last...)}
	for i, v := range e.replaced {
		c.replace(i, v)
	}
	return c
}

func (e *headerEdits) replace(index int, field []byte) {
	if e.replaced == nil {
		e.replaced = map[int][]byte{}
	}
	e.replaced[index] = field
}

// apply makes the new block.
func (e *headerEdits) apply(b *block) []byte {
	out := make([]byte, 0, len(b.raw)+256)
	for i := len(e.first) - 1; i >= 0; i-- {
		out = append(out, e.first[i]...)
	}
	pos := 0
	for i, f := range b.fields {
		value, changed := e.replaced[i]
		if !changed {
			continue
		}
		out = append(append(out, b.raw[pos:f.start]...), value...)
		pos = f.end
	}
	out = append(out, b.raw[pos:]...)
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\r\n")) {
		out = append(out, "\r\n"...)
	}
	for _, f := range e.last {
		out = append(out, f...)
	}
	return out
}

// makeField writes "name: value" with its line end. A value that brings its own blank gets no second one.
func makeField(name, value []byte) []byte {
	f := make([]byte, 0, len(name)+len(value)+4)
	f = append(append(f, name...), ':')
	if len(value) > 0 && value[0] != ' ' && value[0] != '\t' && value[0] != '\r' {
		f = append(f, ' ')
	}
	return append(append(f, value...), "\r\n"...)
}

// headerFrom is the first address in From, its domain in lower case; null when none parses.
func (b *block) headerFrom() address.Mailbox {
	i := b.find("From")
	if i < 0 {
		return address.Mailbox{}
	}
	m, err := address.Parse(firstAddress(b.value(i)))
	if err != nil || m.Domain == "" {
		return address.Mailbox{}
	}
	return m
}

// firstAddress finds what may be the first address of an address list (RFC 5322 section 3.4): what stands between
// the first angle brackets, else the first words before a comma. Comments and quoted names are passed over.
func firstAddress(value []byte) string {
	var plain, angle []byte
	depth, quoted, inAngle := 0, false, false
	for i := 0; i < len(value); i++ {
		c := value[i]
		skip := false
		switch {
		case c == '\\' && (quoted || depth > 0) && i+1 < len(value):
			if depth == 0 {
				plain = append(plain, c, value[i+1])
				angle = appendIf(angle, inAngle, c, value[i+1])
			}
			i++
			continue
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
			skip = true
		case c == ')' && depth > 0:
			depth--
			skip = true
		case depth > 0, c == '\r', c == '\n':
			skip = true
		case c == '<':
			inAngle, skip = true, true
			angle = angle[:0]
		case c == '>' && inAngle:
			return string(bytes.TrimSpace(angle))
		case c == ',' && !inAngle, c == ';':
			return string(bytes.TrimSpace(plain))
		case c == ':' && !inAngle: // the name of a group
			plain, skip = plain[:0], true
		}
		if !skip && depth == 0 {
			plain = append(plain, c)
			angle = appendIf(angle, inAngle, c)
		}
	}
	return string(bytes.TrimSpace(plain))
}

func appendIf(dst []byte, yes bool, c ...byte) []byte {
	if yes {
		return append(dst, c...)
	}
	return dst
}

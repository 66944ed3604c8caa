package pipeline

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

const (
	maxMemoryBody = 64 << 10  // larger new bodies are in a file
	maxNewBody    = 512 << 20 // an answer of a few octets could name the same range for ever
)

// piece of a new body: octets, or a range of another body.
type piece struct {
	data []byte
	from *envelope.Body
	off  int64
	size int64
}

func dataPiece(b []byte) piece { return piece{data: b, size: int64(len(b))} }

func (p *piece) reader() io.Reader {
	if p.from == nil {
		return bytes.NewReader(p.data)
	}
	return io.NewSectionReader(p.from, p.off, p.size)
}

// replaceBody tests a body edit and makes the new body.
func (r *run) replaceBody(p *proposal, e *agentpb.BodyEdit) (change, string) {
	pieces, what := p.pieces(e)
	if what != "" {
		return change{}, "edit body " + what
	}
	c, err := compose(pieces, r.conv.pipeline.options.TempFile)
	switch {
	case err != nil:
		// Not the agent's fault, but as little to be applied.
		return change{}, fmt.Sprintf("edit body could not be stored: %v", err)
	case uint64(c.body.Size()) != e.GetSize():
		return change{}, fmt.Sprintf("edit body has %d octets, not %d", c.body.Size(), e.GetSize())
	case !bytes.Equal(c.sum[:], e.GetSha256()):
		return change{}, "edit body has another SHA-256"
	case c.loose:
		return change{}, "edit body has a lone CR or LF"
	}
	words := fmt.Sprintf("replace body (%d bytes)", c.body.Size())
	return change{whole: true, words: words, apply: func(w *working) { w.draft.mail.Body = c.body }}, ""
}

// pieces turns the segments of an edit into pieces, with their ranges tested.
func (p *proposal) pieces(e *agentpb.BodyEdit) (list []piece, what string) {
	if e.GetSize() > maxNewBody {
		return nil, fmt.Sprintf("has %d octets, at most %d", e.GetSize(), maxNewBody)
	}
	total := uint64(0)
	for _, s := range e.GetSegments() {
		next, what := p.piece(s)
		if what != "" {
			return nil, what
		}
		if total += uint64(next.size); total > e.GetSize() {
			return nil, fmt.Sprintf("has more than %d octets", e.GetSize())
		}
		list = append(list, next)
	}
	return list, ""
}

func (p *proposal) piece(s *agentpb.Segment) (piece, string) {
	switch source := s.GetSource().(type) {
	case *agentpb.Segment_Data:
		return dataPiece(source.Data), ""
	case *agentpb.Segment_Original:
		return rangePiece(p.viewBody(p.draft.mail), source.Original)
	case *agentpb.Segment_Uploaded:
		uploaded := p.uploads[source.Uploaded.GetTicket()]
		if uploaded == nil {
			return piece{}, fmt.Sprintf("names upload %q, which is not there", cut(source.Uploaded.GetTicket(), 40))
		}
		if source.Uploaded.GetRange() == nil {
			return piece{from: uploaded, size: uploaded.Size()}, ""
		}
		return rangePiece(uploaded, source.Uploaded.GetRange())
	}
	return piece{}, "has a segment of an unknown kind"
}

func rangePiece(from *envelope.Body, r *agentpb.Range) (piece, string) {
	if from == nil {
		return piece{}, "names a body that is not there"
	}
	size := uint64(from.Size())
	if r.GetOffset() > size || r.GetLength() > size-r.GetOffset() {
		return piece{}, fmt.Sprintf("names %d octets at %d of %d", r.GetLength(), r.GetOffset(), size)
	}
	return piece{from: from, off: int64(r.GetOffset()), size: int64(r.GetLength())}, ""
}

// composed is a new body with what there is to know about it.
type composed struct {
	body  *envelope.Body
	sum   [sha256.Size]byte
	loose bool // it has a CR or LF outside of a line end
}

// compose joins pieces into a new body, in memory when it is small and in a file that file opens otherwise.
func compose(pieces []piece, file func() (*os.File, error)) (*composed, error) {
	total := int64(0)
	for i := range pieces {
		total += pieces[i].size
	}
	if total <= maxMemoryBody {
		buffer := bytes.NewBuffer(make([]byte, 0, total))
		c, err := join(pieces, buffer)
		c.body = envelope.MemoryBody(buffer.Bytes())
		return c, err
	}
	f, err := file()
	if err != nil {
		return nil, fmt.Errorf("opening a file: %w", err)
	}
	c, err := join(pieces, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	c.body = envelope.FileBody(f, total)
	return c, nil
}

func join(pieces []piece, to io.Writer) (*composed, error) {
	c := &composed{}
	scan := &bodyScan{sum: sha256.New()}
	w := io.MultiWriter(to, scan)
	for i := range pieces {
		if _, err := io.Copy(w, pieces[i].reader()); err != nil {
			return c, fmt.Errorf("writing a new body: %w", err)
		}
	}
	scan.sum.Sum(c.sum[:0])
	c.loose = scan.loose || scan.afterCR
	return c, nil
}

// bodyScan digests a body and looks for line ends that are none (RFC 5321 section 2.3.8).
type bodyScan struct {
	sum     hash.Hash
	afterCR bool
	loose   bool
}

// Write implements io.Writer.
func (s *bodyScan) Write(p []byte) (int, error) {
	s.sum.Write(p)
	n := len(p)
	for len(p) > 0 && !s.loose {
		if s.afterCR {
			s.loose = p[0] != '\n'
			s.afterCR = false
			p = p[1:]
			continue
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			i = len(p)
		}
		switch cr := bytes.IndexByte(p[:i], '\r'); {
		case cr >= 0:
			s.afterCR = true
			p = p[cr+1:]
		case i < len(p):
			s.loose = true
		default:
			p = nil
		}
	}
	return n, nil
}

// unnamedFile makes a file in dir that goes with its last user.
func unnamedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".body-*")
	if err != nil {
		return nil, fmt.Errorf("making a file for a new body: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("unlinking the file of a new body: %w", err)
	}
	return f, nil
}

// checkSpawns tests the new messages of an answer and makes their bodies.
func (r *run) checkSpawns(p *proposal) string {
	for _, s := range p.answer.GetSpawns() {
		if why := p.refuses(editSpawn); why != "" {
			return "spawn " + why
		}
		spawn, what := r.spawn(p, s)
		if what != "" {
			return "spawn " + what
		}
		p.spawns = append(p.spawns, spawn)
	}
	return ""
}

func (r *run) spawn(p *proposal, s *agentpb.Spawn) (spawn Spawn, what string) {
	spawn = Spawn{Agent: p.name, Cause: p.name + " " + eventNames[p.kind], Durable: s.GetDurable()}
	if len(s.GetSender()) > 0 {
		sender, what := parseAddress(s.GetSender())
		if what != "" {
			return spawn, "has the sender " + what
		}
		spawn.Sender = sender.String()
	}
	if len(s.GetRecipients()) == 0 {
		return spawn, "has no recipients"
	}
	for _, b := range s.GetRecipients() {
		rcpt, what := parseAddress(b)
		if what != "" {
			return spawn, "has the recipient " + what
		}
		spawn.Recipients = append(spawn.Recipients, rcpt.String())
	}
	header, rest, ok := bytes.Cut(s.GetBefore(), []byte("\r\n\r\n"))
	if !ok {
		return spawn, "has no header block that an empty line ends"
	}
	if len(header) > maxHeaderBlock {
		return spawn, fmt.Sprintf("has a header block of more than %d octets", maxHeaderBlock)
	}
	spawn.Header = append(bytes.Clone(header), "\r\n"...)
	if what := checkBlock(spawn.Header); what != "" {
		return spawn, what
	}
	c, err := compose(r.spawnPieces(p, s, rest), r.conv.pipeline.options.TempFile)
	switch {
	case err != nil:
		return spawn, fmt.Sprintf("could not be stored: %v", err)
	case c.loose:
		return spawn, "has a lone CR or LF"
	}
	spawn.Body = c.body
	return spawn, ""
}

func (r *run) spawnPieces(p *proposal, s *agentpb.Spawn, rest []byte) []piece {
	list := []piece{dataPiece(rest)}
	if m := p.draft.mail; s.GetIncludeOriginal() && m != nil {
		list = append(list, dataPiece(m.Header), dataPiece([]byte("\r\n")))
		if m.Body != nil {
			list = append(list, piece{from: m.Body, size: m.Body.Size()})
		}
	}
	return append(list, dataPiece(s.GetAfter()))
}

// checkBlock tests a header block that an agent made.
func checkBlock(raw []byte) string {
	b, end := parseBlock(raw), 0
	for i, f := range b.fields {
		if f.start != end {
			return "has a header line that is no field"
		}
		end = f.end
		if what := checkFieldValue(b.name(i), b.value(i)); what != "" {
			return "has " + what
		}
	}
	if end != len(raw) || len(b.fields) == 0 {
		return "has a header line that is no field"
	}
	return ""
}

package session

import (
	"errors"
	"io"

	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// errOver ends a callback of which nobody hears any more.
var errOver = errors.New("connection is over")

// dataCommand raises OnData, where DATA is in sequence; where it is not go-smtp says so.
func (s *Session) dataCommand(c *wire.Command) (wire.Answer, bool) {
	switch {
	case s.tx == nil || s.tx.accepted == 0 || c.Arg != "":
		return wire.Answer{}, true
	case s.tx.chunking:
		return wire.Answer{Reply: inChunks}, false
	}
	a, refused := s.askData(false)
	if !refused {
		a.Reply = startInput
	}
	return a, !refused
}

// bdatCommand raises OnData at the first chunk.
func (s *Session) bdatCommand(c *wire.Command) (wire.Answer, bool) {
	switch {
	case s.tx == nil || s.tx.accepted == 0:
		return wire.Answer{Reply: needRcpt}, false
	case s.tx.chunking:
		return wire.Answer{}, true
	}
	a, refused := s.askData(true)
	if refused {
		// RFC 3030 section 4.2: chunks that are on their way already are refused too, and the message is over.
		s.w.Feed("RSET")
		return a, false
	}
	s.tx.chunking = true
	s.tx.draft = newDraft(s, true)
	return a, true
}

// askData raises OnData, if the message can be kept: the disk may have become full since MAIL.
func (s *Session) askData(chunking bool) (wire.Answer, bool) {
	if no := s.checkRoom(s.tx.mail.Sender.Size); !no.IsZero() {
		return wire.Answer{Reply: no}, true
	}
	kind := agentpb.EventKind_EVENT_KIND_DATA
	if s.tx.discard != nil || !s.conv.Subscribed(kind) {
		return wire.Answer{}, false
	}
	return s.ask(kind, &agentpb.Arguments{Event: &agentpb.Arguments_Data{Data: &agentpb.DataArguments{Chunking: chunking}}})
}

// Chunk implements wire.Judge.
func (s *Session) Chunk(p []byte) { s.tx.draft.write(p) }

// EndOfChunk implements wire.Judge.
func (s *Session) EndOfChunk(size int64) wire.Answer {
	if s.tx.draft.refused {
		s.tx.received = true
		s.blame, s.blameSteps = s.tx.draft.blame, nil
		return s.tx.draft.refusal
	}
	return wire.Answer{Reply: chunkOK(size)}
}

// Data implements smtp.Session. The reader of go-smtp is not used: after DATA the body comes from the wire, which leaves
// the terminator to go-smtp, and after BDAT it has come already.
func (s *Session) Data(io.Reader) error {
	if !s.tx.chunking {
		s.tx.draft = newDraft(s, false)
		if !s.receive() {
			return errOver
		}
	}
	s.tx.received = true
	a := s.endOfData()
	if a.Reply.IsZero() {
		return errOver
	}
	return s.answer(a)
}

// receive reads the message after 354. False: the connection is over.
func (s *Session) receive() bool {
	body, d := s.w.Body(), s.tx.draft
	for {
		p, err := body.Next()
		var fault wire.Fault
		switch {
		case err == nil:
			if d.write(p); d.refused {
				body.GiveUp()
			}
		case err == io.EOF:
			return true
		case errors.As(err, &fault):
			d.refuse(wire.Answer{Reply: ambiguous(fault.Error()), Close: true, End: wire.EndProtocol})
			return true
		default:
			return false
		}
	}
}

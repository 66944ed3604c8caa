package session

import (
	"bytes"
	"errors"
	"runtime/debug"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// draft is a message that is coming in: first a header block, then a body that goes to the store as it arrives. Once it
// is refused nothing more is kept.
type draft struct {
	s       *Session
	chunked bool
	size    int64
	head    []byte // header block so far
	inBody  bool
	body    queue.BodyWriter
	lines   wire.LineChecker // of chunks; after DATA the wire has looked
	lastTwo [2]byte
	refused bool
	refusal wire.Answer
	blame   *pipeline.Verdict
	judging chan *pipeline.Outcome // OnEndOfHeaders under way; nil: not
	outcome *pipeline.Outcome      // of OnEndOfHeaders; nil: nobody was asked
}

func newDraft(s *Session, chunked bool) *draft { return &draft{s: s, chunked: chunked} }

// refuse settles the fate of the message; the first reason counts.
func (d *draft) refuse(a wire.Answer) {
	if d.refused && !a.Close {
		return
	}
	d.refused, d.refusal = true, a
	d.drop()
}

func (d *draft) deny(r envelope.Reply) { d.refuse(wire.Answer{Reply: r}) }

// drop frees what was kept.
func (d *draft) drop() {
	if d.body != nil {
		d.body.Abort()
		d.body = nil
	}
	d.head = nil
}

// abort ends a draft that is not wanted any more, after its agents have answered.
func (d *draft) abort() {
	d.join()
	d.drop()
}

// write takes the next octets.
func (d *draft) write(p []byte) {
	d.size += int64(len(p))
	if d.refused || len(p) == 0 {
		return
	}
	if limit := d.s.limits().MaxMessageSize; limit > 0 && d.size > limit {
		d.deny(tooLarge)
		return
	}
	if d.chunked {
		if fault := d.lines.Check(p); fault != "" {
			d.deny(ambiguous(fault.Error()))
			return
		}
	}
	d.poll()
	if !d.inBody {
		p = d.header(p)
	}
	d.store(p)
}

// header takes octets of the header block and answers with those behind it.
func (d *draft) header(p []byte) (rest []byte) {
	from := max(len(d.head)-3, 0)
	if len(d.head) > 0 {
		d.head = append(d.head, p...)
		p = d.head
	}
	end, next := endOfHeader(p, from)
	limit := int(d.s.limits().MaxHeaderSize)
	switch {
	case limit > 0 && (end > limit || end < 0 && len(p) > limit):
		d.deny(headerTooLarge)
		return nil
	case end < 0:
		if len(d.head) == 0 {
			d.head = append(d.head, p...)
		}
		return nil
	}
	rest = p[next:]
	if len(d.head) > 0 {
		rest = bytes.Clone(rest)
	}
	d.endHeader(bytes.Clone(p[:end]))
	return rest
}

// endOfHeader finds the empty line: the header block is b[:end], what follows it is b[next:]. It looks from an offset on.
func endOfHeader(b []byte, from int) (end, next int) {
	if len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		return 0, 2
	}
	i := bytes.Index(b[from:], []byte("\r\n\r\n"))
	if i < 0 {
		return -1, -1
	}
	return from + i + 2, from + i + 4
}

// endHeader checks the header block, filters it, and raises OnEndOfHeaders while the body is still read.
func (d *draft) endHeader(h []byte) {
	d.inBody, d.head = true, nil
	if no := checkHeader(h, d.s.deps.Config.Host.MaxHops); !no.IsZero() {
		d.deny(no)
		return
	}
	m := d.s.tx.mail
	m.OriginalHeader, m.Header = h, h
	if d.s.env.Trust != envelope.OwnServer {
		m.Header = withoutOwn(h)
	}
	kind := agentpb.EventKind_EVENT_KIND_END_OF_HEADERS
	if d.s.tx.nobody() || !d.s.conv.Subscribed(kind) {
		return
	}
	d.judging = make(chan *pipeline.Outcome, 1)
	go d.judge(d.s.event(kind, nil), d.judging)
}

// judge asks the agents. The session only reads the body meanwhile.
func (d *draft) judge(ev *pipeline.Event, answer chan<- *pipeline.Outcome) {
	defer func() {
		if v := recover(); v != nil {
			d.s.log().Error("event failed", "event", "OnEndOfHeaders", "panic", v, "stack", string(debug.Stack()))
			answer <- &pipeline.Outcome{Verdict: pipeline.Verdict{Decision: pipeline.Disconnect, Reply: failedInside}}
		}
	}()
	answer <- d.s.conv.Raise(d.s.context(), ev)
}

// poll takes the outcome of OnEndOfHeaders if it is there.
func (d *draft) poll() {
	if d.judging == nil {
		return
	}
	select {
	case o := <-d.judging:
		d.settle(o)
	default:
	}
}

// join waits for it.
func (d *draft) join() {
	if d.judging != nil {
		d.settle(<-d.judging)
	}
}

func (d *draft) settle(o *pipeline.Outcome) {
	d.judging, d.outcome = nil, o
	d.s.remember(o)
	blame, steps := d.s.blame, d.s.blameSteps // of a refusal that may be on its way
	a, refused := d.s.judge(o)
	if refused && !d.refused {
		d.blame = d.s.blame
		d.refuse(a)
	}
	d.s.blame, d.s.blameSteps = blame, steps
}

// store writes to the body.
func (d *draft) store(p []byte) {
	if d.refused || len(p) == 0 {
		return
	}
	if n := len(p); n >= 2 {
		copy(d.lastTwo[:], p[n-2:])
	} else {
		d.lastTwo = [2]byte{d.lastTwo[1], p[0]}
	}
	if d.body == nil && !d.open() {
		return
	}
	if _, err := d.body.Write(p); err != nil {
		d.failed("writing message", err)
	}
}

func (d *draft) open() bool {
	var err error
	if d.body, err = d.s.deps.Store.NewBody(); err != nil {
		d.failed("starting message", err)
		return false
	}
	return true
}

// failed refuses a message that cannot be kept.
func (d *draft) failed(what string, err error) {
	d.s.logStore(what, err)
	d.deny(storeReply(err))
}

// logStore logs that a message cannot be kept. Of a disk in reserve the store itself says so, once for all messages.
func (s *Session) logStore(what string, err error) {
	level := hclog.Error
	if errors.Is(err, queue.ErrFull) {
		level = hclog.Debug
	}
	s.log().Log(level, what, "message", s.id(), "error", err)
}

// storeReply tells a full disk from other failures.
func storeReply(err error) envelope.Reply {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, queue.ErrFull) {
		return noResources
	}
	return notKept
}

// finish ends the message. False: it is refused.
func (d *draft) finish() bool {
	if d.chunked && !d.refused {
		d.endChunks()
	}
	if !d.inBody && !d.refused {
		// No empty line: all of it is header.
		d.endHeader(bytes.Clone(d.head))
	}
	if !d.refused && d.body == nil {
		d.open()
	}
	d.join()
	if d.refused {
		return false
	}
	body, err := d.body.Finish()
	if err != nil {
		d.failed("ending message", err)
		return false
	}
	m := d.s.tx.mail
	m.Body, m.OriginalBody = body, body
	return true
}

// endChunks ends the last line of a message that came in chunks: with DATA it would have come so, and it will be sent so.
func (d *draft) endChunks() {
	if d.lines.Open() {
		d.deny(ambiguous(wire.BareCR.Error()))
		return
	}
	if !d.inBody {
		if len(d.head) > 0 && !bytes.HasSuffix(d.head, []byte("\r\n")) {
			d.head = append(d.head, "\r\n"...)
		}
		return
	}
	if d.body != nil && d.lastTwo != [2]byte{'\r', '\n'} {
		d.store([]byte("\r\n"))
	}
}

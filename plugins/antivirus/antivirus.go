package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// Scanner shows messages to engines and acts on what they find: at the end of data, and whatever was not scanned there when
// it is submitted.
type Scanner struct {
	Config
	host    string
	health  *sdk.Health
	engines []*guarded
	found   bool // none is configured: the clamd of this machine is looked for
	keys    []*stampKey
	results sdk.Table[resultRow]
	states  sdk.Table[stateRow]
	room    *semaphore.Weighted // for what is decoded

	stop     context.CancelFunc
	watching sync.WaitGroup
}

// Stamps.
const (
	stampStatus  = "av.status" // shared: clean, infected or unscanned
	stampEngines = "engines"   // that have scanned it, with their versions
	stampMalware = "malware"   // that was found
)

// Values of av.status.
const (
	statusClean     = "clean"
	statusInfected  = "infected"
	statusUnscanned = "unscanned"
)

// Reasons in the ledger.
const (
	reasonClean    = "Clean"         // with the engines
	reasonBefore   = "ScannedBefore" // by another server of ours
	reasonMalware  = "Malware"       // with its name and where it is
	reasonNoEngine = "NoEngine"
	reasonDown     = "EngineDown"
	reasonLimit    = "OverLimit"
	reasonTimeout  = "Timeout"
	reasonNotRead  = "NotRead"
)

func (s *Scanner) subscribe(r *sdk.Registrar) {
	s.results = sdk.UseTable[resultRow](r, "results", sdk.Key(), sdk.MaxRows(200_000), sdk.OnlyAt(sdk.OnEndOfData, sdk.OnSubmitted))
	s.states = sdk.UseTable[stateRow](r, "engines", sdk.Key(sdk.Literal(foundName)), sdk.MaxRows(1000),
		sdk.OnlyAt(sdk.OnEndOfData, sdk.OnSubmitted, sdk.OnSchedule))
	options := []sdk.Option{
		sdk.ReadsHeaders(), sdk.Body(sdk.Whole, sdk.Current), sdk.Waits,
		sdk.MayChange(sdk.Verdicts, sdk.Headers, sdk.BodyParts, sdk.Stamps(stampStatus, stampEngines, stampMalware)),
	}
	s.room = semaphore.NewWeighted(maxHeld)
	r.OnEndOfData(options...)
	r.OnSubmitted(options...)
	r.OnSchedule(sdk.Every(s.CheckEvery), sdk.MayChange())
	s.stop = func() {}
	if !r.Validating() {
		var ctx context.Context
		ctx, s.stop = context.WithCancel(context.Background())
		s.watching.Go(func() { s.watch(ctx) })
	}
}

// Close ends what runs beside the handlers.
func (s *Scanner) Close() error {
	s.stop()
	s.watching.Wait()
	for _, g := range s.engines {
		g.close()
	}
	return nil
}

// mail is a message at either event.
type mail struct {
	*sdk.Event
	headers  sdk.Header
	body     *sdk.BodyReader
	patch    func() *sdk.Patch
	accepted bool // the client has been told that it is: it cannot be refused any more
	made     bool // not by a client: by this server
}

// OnEndOfData scans what comes over SMTP.
func (s *Scanner) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	return s.judge(ctx, &mail{Event: &e.Event, headers: e.Headers, body: e.Body(), patch: e.Patch})
}

// OnSubmitted scans all other mail: that which this server made, which was released from quarantine, or which was let in
// while the agent was away. What was scanned at the end of data does not come here (sdk.Done).
func (s *Scanner) OnSubmitted(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	return s.judge(ctx, &mail{Event: &e.Event, headers: e.Headers, body: e.Body(), patch: e.Patch, accepted: true,
		made: e.Origin == "dsn" || e.Origin == "spawn"})
}

// traffic is the direction, in the words of the configuration.
func (m *mail) traffic() string {
	switch {
	case m.made:
		return "internal"
	case m.Session.Traffic == sdk.Outbound:
		return "outbound"
	case m.Session.Traffic == sdk.External:
		return "external"
	}
	return "internal"
}

// hurry ends a little before ctx does, so that there is time to say that there was too little of it.
func hurry(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-time.Until(end)/10))
}

// judge a message.
func (s *Scanner) judge(ctx context.Context, m *mail) sdk.Verdict {
	ctx, cancel := hurry(ctx)
	defer cancel()
	good, problem := s.believed(ctx, m)
	if good != nil {
		return s.scannedBefore(m, good)
	}
	if problem != nil {
		m.Logger().Warn("the stamp of another server is not believed", "error", problem)
	}
	leave, err := s.enter(ctx, m.body.Size())
	if err != nil {
		return sdk.Undetermined(reasonTimeout, err)
	}
	defer leave()
	u, err := s.unpack(ctx, m.headers.Block(), m.body)
	defer u.close()
	switch {
	case ctx.Err() != nil:
		return sdk.Undetermined(reasonTimeout, errors.New("the message could not be taken to pieces in time"))
	case err != nil && !errors.Is(err, errLimit):
		return sdk.Undetermined(reasonNotRead, err)
	}
	if !m.Needed {
		if keys := s.wanted(ctx, u.objects); len(keys) > 0 {
			return sdk.Continue().Needs(s.results.Keys(keys...))
		}
	}
	c := s.ask(ctx, u.objects, func(o *object, g *guarded, v version) (answer, bool) { return s.known(m, o, g, v) })
	c.limit = err
	return s.act(ctx, m, c).Write(s.learned(c)...)
}

// maxHeld octets are decoded at the same time, of all messages together. An event more waits until others have their answer: in a
// storm of large messages the process would else hold hundreds of them.
const maxHeld = 256 << 20

// enter waits for the room that a message of size needs decoded, for some parts in more than one way.
func (s *Scanner) enter(ctx context.Context, size int64) (leave func(), err error) {
	weight := min(2*size, maxHeld)
	if err := s.room.Acquire(ctx, weight); err != nil {
		return nil, errors.New("too many messages at once to take this one to pieces in time")
	}
	return func() { s.room.Release(weight) }, nil
}

// scannedBefore passes what another server of ours has scanned.
func (s *Scanner) scannedBefore(m *mail, good *stamp) sdk.Verdict {
	v := sdk.Done(sdk.InMessage).Because(reasonBefore, clip(good.host+": "+good.engines, maxData)).
		Stamp(stampStatus, statusClean).Stamp(stampEngines, good.engines).Count("scanned_before", 1)
	if !s.mayLeave(m) {
		v = v.Edit(sdk.RemoveHeader(stampField))
	}
	return v
}

// mayLeave: the message goes on with a stamp.
func (s *Scanner) mayLeave(m *mail) bool {
	for _, traffic := range s.StampTraffic {
		if traffic == m.traffic() {
			return true
		}
	}
	return false
}

// act on what the engines said.
func (s *Scanner) act(ctx context.Context, m *mail, c *consultation) sdk.Verdict {
	hits := c.infected(s.Bias)
	switch {
	case len(hits) > 0:
		return s.infected(ctx, m, c, hits)
	case c.answers() < c.required(s.Bias, s.Answers):
		return s.unanswered(m, c)
	}
	if problem := c.unscanned(); problem != "" {
		return s.overLimit(m, problem)
	}
	return s.clean(ctx, m, c)
}

// clean passes.
func (s *Scanner) clean(ctx context.Context, m *mail, c *consultation) sdk.Verdict {
	engines := c.engines()
	v := sdk.Done(sdk.InMessage).Because(reasonClean, clip(engines, maxData)).
		Stamp(stampStatus, statusClean).Stamp(stampEngines, engines).Count("clean", 1)
	if m.headers.Has(stampField) {
		v = v.Edit(sdk.RemoveHeader(stampField))
	}
	mark, err := s.stamped(ctx, m, engines)
	if err != nil {
		m.Logger().Warn("the message gets no stamp for the next server", "error", err)
	}
	if mark != nil {
		v = v.Edit(sdk.AddRawHeader(stampField, mark.value()))
	}
	return v
}

// infected messages have the fate of their direction.
func (s *Scanner) infected(ctx context.Context, m *mail, c *consultation, hits []hit) sdk.Verdict {
	action := map[string]string{"external": s.External, "outbound": s.Outbound, "internal": s.Internal}[m.traffic()]
	v, action := s.fate(ctx, m, c, hits, action)
	return v.Because(reasonMalware, clip(describe(hits), maxData)).
		Stamp(stampStatus, statusInfected).Stamp(stampMalware, hits[0].malware).Count("infected", 1).Count(action, 1)
}

func (s *Scanner) fate(ctx context.Context, m *mail, c *consultation, hits []hit, action string) (v sdk.Verdict, done string) {
	switch action {
	case "delete":
		return sdk.Discard(), "deleted"
	case "quarantine":
		return sdk.Quarantine(), "quarantined"
	case "strip":
		return s.strip(ctx, m, c, hits), "stripped"
	}
	return s.refuse(m, s.Response)
}

// refuse a message. One that was accepted already is reported to its sender only if that has authenticated: anything
// else would be backscatter.
func (s *Scanner) refuse(m *mail, text string) (v sdk.Verdict, done string) {
	switch {
	case !m.accepted:
		return sdk.Reject(550, "5.7.1", text), "rejected"
	case m.Session.Auth != nil && !m.made:
		return sdk.Fail(550, "5.7.1", text), "rejected"
	}
	return sdk.Quarantine(), "quarantined"
}

// unanswered: fewer engines answered than have to.
func (s *Scanner) unanswered(m *mail, c *consultation) sdk.Verdict {
	reason, policy, err := reasonDown, s.OnEngineDown, c.problems()
	if s.found && errors.Is(err, errAbsent) {
		if _, seen := s.states.Row(m); !seen {
			reason, policy = reasonNoEngine, s.OnNoEngine
		}
	}
	switch policy {
	case "pass":
		return sdk.Done(sdk.InMessage).Because(reason, clip(err.Error(), maxData)).Stamp(stampStatus, statusUnscanned).Count("unscanned", 1)
	case "quarantine":
		return sdk.Quarantine().Because(reason, clip(err.Error(), maxData)).Stamp(stampStatus, statusUnscanned).Count("unscanned", 1)
	}
	return sdk.Undetermined(reason, errors.New(clip(err.Error(), maxData)))
}

// overLimit: a part of the message was not looked at.
func (s *Scanner) overLimit(m *mail, problem string) sdk.Verdict {
	var v sdk.Verdict
	switch s.OverLimit {
	case "pass":
		v = sdk.Done(sdk.InMessage)
	case "quarantine":
		v = sdk.Quarantine()
	default:
		v, _ = s.refuse(m, s.OverLimitResponse)
	}
	return v.Because(reasonLimit, clip(problem, maxData)).Stamp(stampStatus, statusUnscanned).Count("over_limit", 1)
}

// strip replaces the infected parts by a notice each. What is left is shown to the engines once more: where they still find
// something, or where it is in no part alone, nothing is left of the message but its header.
func (s *Scanner) strip(ctx context.Context, m *mail, c *consultation, hits []hit) sdk.Verdict {
	parts := strippable(hits)
	if len(parts) > 0 {
		if rest, err := s.remainder(ctx, m, parts, c); err == nil && rest {
			patch := m.patch()
			for _, p := range parts {
				patch.ReplacePart(p.part, s.noticeFor(p))
			}
			return s.unstamped(m, sdk.Done(sdk.InMessage).Edit(patch))
		}
	}
	all := hit{malware: hits[0].malware, object: hits[0].object}
	patch := m.patch()
	patch.ReplacePart(&mime.Part{}, s.noticeFor(stripped{name: all.object.name, malware: all.malware}))
	return s.unstamped(m, sdk.Done(sdk.InMessage).Edit(patch))
}

// unstamped: the stamp of a message that was changed is worth nothing.
func (s *Scanner) unstamped(m *mail, v sdk.Verdict) sdk.Verdict {
	if m.headers.Has(stampField) {
		v = v.Edit(sdk.RemoveHeader(stampField))
	}
	return v
}

// noticeFor what stood in the place of a part.
func (s *Scanner) noticeFor(p stripped) []byte {
	text := strings.NewReplacer("{name}", p.name, "{malware}", p.malware).Replace(s.Notice)
	return mime.Text(strings.ToValidUTF8(text, "?") + "\n")
}

// describe hits for the ledger: "Eicar-Test-Signature in invoice.zip (clamd)".
func describe(hits []hit) string {
	var all []string
	for _, h := range hits {
		all = append(all, fmt.Sprintf("%s in %s (%s)", h.malware, h.object.name, strings.Join(h.engines, ", ")))
	}
	return strings.Join(all, "; ")
}

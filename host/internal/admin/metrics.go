package admin

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Metrics counts what the host does. Messages are counted from the ledger's records (Ledger), agents from their
// calls (Caller); the rest is asked for when somebody looks.
type Metrics struct {
	source MetricsSource

	counts  [lastCount]atomic.Uint64
	rejects sync.Map // verb -> *atomic.Uint64; verbs come from a closed list
	rates   [3]rate

	mu     sync.RWMutex
	agents map[string]*agentMetrics
}

// MetricsSource is asked at the moment of a look.
type MetricsSource struct {
	Version string
	Queue   interface {
		Entries(filter func(queue.Entry) bool) []queue.Entry
	}
	Agents  func() []Agent
	Dropped func() uint64 // records the ledger has lost
	Listens func() []Listener
}

// What is counted.
const (
	countSessions = iota
	countReceived
	countRefused
	countDelivered
	countDeferred
	countFailed
	countQuarantined
	countDiscarded
	countReports
	lastCount
)

// What has a rate.
const (
	rateReceived = iota
	rateRefused
	rateDelivered
)

// NewMetrics makes an empty one. SetSource completes it.
func NewMetrics() *Metrics { return &Metrics{agents: map[string]*agentMetrics{}} }

// SetSource says whom to ask for what is not counted. Call it before the first look.
func (m *Metrics) SetSource(s MetricsSource) { m.source = s }

// Totals since the start.
func (m *Metrics) Totals() Totals {
	n := func(i int) uint64 { return m.counts[i].Load() }
	return Totals{
		Sessions: n(countSessions), Received: n(countReceived), Refused: n(countRefused),
		Delivered: n(countDelivered), Deferred: n(countDeferred), Failed: n(countFailed),
		Quarantined: n(countQuarantined), Discarded: n(countDiscarded), Reports: n(countReports),
	}
}

// Rates of the last minute.
func (m *Metrics) Rates() Rates {
	now := time.Now()
	return Rates{
		Received:  m.rates[rateReceived].perSecond(now),
		Refused:   m.rates[rateRefused].perSecond(now),
		Delivered: m.rates[rateDelivered].perSecond(now),
	}
}

// Ledger counts the records on their way to next.
func (m *Metrics) Ledger(next tracking.Ledger) tracking.Ledger { return &countingLedger{next, m} }

type countingLedger struct {
	tracking.Ledger
	metrics *Metrics
}

// Write implements tracking.Ledger.
func (l *countingLedger) Write(r *tracking.Record) {
	if !r.DryRun {
		l.metrics.count(r)
	}
	l.Ledger.Write(r)
}

func (m *Metrics) count(r *tracking.Record) {
	recipients := uint64(max(len(r.Recipients), 1))
	switch r.Event {
	case tracking.Session:
		m.counts[countSessions].Add(1)
	case tracking.Receive:
		m.counts[countReceived].Add(1)
		m.rates[rateReceived].add(time.Now(), 1)
	case tracking.Reject:
		m.counts[countRefused].Add(1)
		m.rates[rateRefused].add(time.Now(), 1)
		m.countReject(r.Command)
	case tracking.Send:
		m.counts[countDelivered].Add(recipients)
		m.rates[rateDelivered].add(time.Now(), recipients)
	case tracking.Defer:
		m.counts[countDeferred].Add(recipients)
	case tracking.Fail:
		m.counts[countFailed].Add(recipients)
	case tracking.Quarantine:
		m.counts[countQuarantined].Add(1)
	case tracking.Drop:
		m.counts[countDiscarded].Add(1)
	case tracking.DSN:
		m.counts[countReports].Add(1)
	}
}

// rejectVerbs bound the values of the label: a client may send any verb.
var rejectVerbs = [...]string{"CONNECT", "HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "MESSAGE", "NOOP",
	"HELP", "RSET"}

func (m *Metrics) countReject(verb string) {
	verb = strings.ToUpper(verb)
	if !slices.Contains(rejectVerbs[:], verb) {
		verb = "other"
	}
	n, _ := m.rejects.LoadOrStore(verb, new(atomic.Uint64))
	n.(*atomic.Uint64).Add(1)
}

// Caller counts the calls of c on their way.
func (m *Metrics) Caller(c pipeline.Caller) pipeline.Caller {
	m.mu.Lock()
	defer m.mu.Unlock()
	counted := m.agents[c.Name()]
	if counted == nil {
		counted = &agentMetrics{}
		m.agents[c.Name()] = counted
	}
	return &countingCaller{c, counted}
}

type countingCaller struct {
	pipeline.Caller
	metrics *agentMetrics
}

// Call implements pipeline.Caller.
func (c *countingCaller) Call(ctx context.Context, call *agent.Call) (agent.Result, error) {
	start := time.Now()
	result, err := c.Caller.Call(ctx, call)
	if call.Kind > 0 && int(call.Kind) < len(c.metrics.events) {
		c.metrics.events[call.Kind].count(time.Since(start), verdictOf(result, err))
	}
	if err == nil && result.Answer != nil {
		c.metrics.add(result.Answer.Counters)
	}
	return result, err
}

// agentMetrics has a place for every kind of event, and the counters that the agent keeps itself.
type agentMetrics struct {
	events [agentpb.EventKind_EVENT_KIND_FEEDBACK + 1]eventMetrics

	mu       sync.Mutex
	counters map[string]uint64
	failed   map[string]uint64 // events that it failed at, by what became of them
}

// Failed counts an event that an agent failed at, by what became of it: "skipped", "defer", "reject", "hold", "waiting" or
// "poison".
func (m *Metrics) Failed(agent, became string) {
	m.mu.RLock()
	counted := m.agents[agent]
	m.mu.RUnlock()
	if counted == nil {
		return
	}
	counted.mu.Lock()
	defer counted.mu.Unlock()
	if counted.failed == nil {
		counted.failed = map[string]uint64{}
	}
	counted.failed[became]++
}

// failures is a copy of what became of the events that the agent failed at.
func (m *agentMetrics) failures() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.failed)
}

// maxCounters of one agent: a name too many is dropped, so that an agent cannot fill the memory with names.
const maxCounters = 100

var counterName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

func (m *agentMetrics) add(counters []*agentpb.Counter) {
	if len(counters) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counters == nil {
		m.counters = map[string]uint64{}
	}
	for _, c := range counters {
		_, known := m.counters[c.Name]
		if known || len(m.counters) < maxCounters && counterName.MatchString(c.Name) {
			m.counters[c.Name] += c.Amount
		}
	}
}

// snapshot is a copy of the agent's own counters.
func (m *agentMetrics) snapshot() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.counters)
}

// outcome of a call: a kind of verdict, or one behind them.
type outcome int

const (
	outcomeFailed = outcome(agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED) + 1 + iota
	outcomeNeed
	outcomes
)

// outcomeNames are the values of the label "verdict".
var outcomeNames = [outcomes]string{
	agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED:  "breach",
	agentpb.VerdictKind_VERDICT_KIND_CONTINUE:     "continue",
	agentpb.VerdictKind_VERDICT_KIND_DONE:         "done",
	agentpb.VerdictKind_VERDICT_KIND_REJECT:       "reject",
	agentpb.VerdictKind_VERDICT_KIND_DEFER:        "defer",
	agentpb.VerdictKind_VERDICT_KIND_DISCONNECT:   "disconnect",
	agentpb.VerdictKind_VERDICT_KIND_DISCARD:      "discard",
	agentpb.VerdictKind_VERDICT_KIND_QUARANTINE:   "quarantine",
	agentpb.VerdictKind_VERDICT_KIND_TARPIT:       "tarpit",
	agentpb.VerdictKind_VERDICT_KIND_BYPASS:       "bypass",
	agentpb.VerdictKind_VERDICT_KIND_FAIL:         "fail",
	agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED: "undetermined",
	outcomeFailed: "failed",
	outcomeNeed:   "need",
}

// verdictOf names an answer by its first verdict that is not "continue".
func verdictOf(result agent.Result, err error) outcome {
	if err != nil || result.Answer == nil || result.Answer.Fault != "" {
		return outcomeFailed
	}
	if result.Answer.Need != nil {
		return outcomeNeed
	}
	kind := agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED
	for _, v := range result.Answer.Verdicts {
		if kind = v.Kind; kind != agentpb.VerdictKind_VERDICT_KIND_CONTINUE {
			break
		}
	}
	if kind < 0 || outcome(kind) >= outcomeFailed {
		return outcome(agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED)
	}
	return outcome(kind)
}

// eventMetrics of one agent at one event.
type eventMetrics struct {
	buckets  [len(bucketMicros) + 1]atomic.Uint64
	micros   atomic.Uint64 // sum
	verdicts [outcomes]atomic.Uint64
}

// bucketMicros are the upper bounds of the latency histogram in microseconds: from a cheap agent on the same
// machine to the end of the longest budget.
var bucketMicros = [...]int64{50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
	2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000}

func (e *eventMetrics) count(took time.Duration, verdict outcome) {
	micros := took.Microseconds()
	i, _ := slices.BinarySearch(bucketMicros[:], micros)
	e.buckets[i].Add(1)
	e.micros.Add(uint64(micros))
	e.verdicts[verdict].Add(1)
}

func (e *eventMetrics) calls() (n uint64) {
	for i := range e.buckets {
		n += e.buckets[i].Load()
	}
	return n
}

// quantile is the upper bound of the bucket that holds the share q of all calls, in microseconds.
func (e *eventMetrics) quantile(q float64) int64 {
	want, seen := uint64(q*float64(e.calls())), uint64(0)
	for i, bound := range bucketMicros {
		if seen += e.buckets[i].Load(); seen > want {
			return bound
		}
	}
	return bucketMicros[len(bucketMicros)-1]
}

// fill adds what was counted to the events of a.
func (m *Metrics) fill(a *Agent) {
	m.mu.RLock()
	counted := m.agents[a.Name]
	m.mu.RUnlock()
	if counted == nil {
		return
	}
	a.Counters, a.Failures = counted.snapshot(), counted.failures()
	for i := range a.Events {
		e := &a.Events[i]
		kind := kindOf(e.Event)
		if kind == 0 {
			continue
		}
		counts := &counted.events[kind]
		e.Calls = counts.calls()
		if e.Calls > 0 {
			e.Median, e.P99 = counts.quantile(0.5), counts.quantile(0.99)
		}
		e.Verdicts = counts.verdictCounts()
	}
}

func (e *eventMetrics) verdictCounts() map[string]uint64 {
	counts := map[string]uint64{}
	for i := range e.verdicts {
		if n := e.verdicts[i].Load(); n > 0 {
			counts[outcomeNames[i]] = n
		}
	}
	return counts
}

// kindOf is the event of that name, 0 for none.
func kindOf(name string) agentpb.EventKind {
	for kind := agentpb.EventKind_EVENT_KIND_CONNECT; kind <= agentpb.EventKind_EVENT_KIND_FEEDBACK; kind++ {
		if pipeline.EventName(kind) == name {
			return kind
		}
	}
	return 0
}

// rate counts by the second and remembers a minute.
type rate struct {
	mu      sync.Mutex
	seconds [60]uint64
	last    int64 // unix second of the newest count
}

func (r *rate) add(now time.Time, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(now.Unix())
	r.seconds[r.last%60] += n
}

func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(now.Unix())
	var sum uint64
	for _, n := range r.seconds {
		sum += n
	}
	return float64(sum) / 60
}

// advance forgets the seconds that have passed without a count.
func (r *rate) advance(now int64) {
	if now-r.last >= 60 {
		r.seconds, r.last = [60]uint64{}, now
		return
	}
	for r.last < now {
		r.last++
		r.seconds[r.last%60] = 0
	}
}

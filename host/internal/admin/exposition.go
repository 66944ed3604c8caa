package admin

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Handler serves the metrics at /metrics.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m)
	return mux
}

// ServeHTTP implements http.Handler: the Prometheus text format, version 0.0.4. Labels have values from closed
// lists and the configuration only, never from mail.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	out := bufio.NewWriter(w)
	e := exposition{out}
	m.writeMessages(e)
	m.writeQueue(e)
	m.writeListeners(e)
	m.writeAgents(e)
	m.writeLatency(e)
	m.writeFailures(e)
	m.writeCounters(e)
	_ = out.Flush() // whoever asked has gone
}

func (m *Metrics) writeMessages(e exposition) {
	e.family("postern_info", "gauge", "Version of the running host.")
	e.sample("postern_info", 1, "version", m.source.Version)
	t := m.Totals()
	e.single("postern_sessions_total", "counter", "SMTP sessions that have ended.", float64(t.Sessions))
	e.single("postern_messages_received_total", "counter", "Messages accepted over SMTP.", float64(t.Received))
	e.family("postern_refusals_total", "counter", "Commands, recipients and messages refused, by verb.")
	for _, verb := range append(rejectVerbs[:], "other") {
		if n, ok := m.rejects.Load(verb); ok {
			e.sample("postern_refusals_total", float64(n.(*atomic.Uint64).Load()), "command", verb)
		}
	}
	e.family("postern_recipients_total", "counter", "Recipients of accepted messages by what became of a delivery attempt.")
	e.sample("postern_recipients_total", float64(t.Delivered), "result", "delivered")
	e.sample("postern_recipients_total", float64(t.Deferred), "result", "deferred")
	e.sample("postern_recipients_total", float64(t.Failed), "result", "failed")
	e.single("postern_messages_quarantined_total", "counter", "Messages kept for an operator.", float64(t.Quarantined))
	e.single("postern_messages_discarded_total", "counter", "Messages dropped by an agent or an operator.", float64(t.Discarded))
	e.single("postern_reports_total", "counter", "Delivery status notifications made.", float64(t.Reports))
	e.single("postern_ledger_dropped_total", "counter", "Records the ledger has lost.", float64(m.source.Dropped()))
}

func (m *Metrics) writeQueue(e exposition) {
	depth := map[queue.State]int{}
	var oldest time.Time
	m.source.Queue.Entries(func(entry queue.Entry) bool {
		depth[entry.State]++
		if isMoving(entry.State) && (oldest.IsZero() || entry.Received.Before(oldest)) {
			oldest = entry.Received
		}
		return false
	})
	e.family("postern_queue_items", "gauge", "Items in the store by state.")
	for state := queue.Ready; state < queue.Done; state++ {
		e.sample("postern_queue_items", float64(depth[state]), "state", state.String())
	}
	age := 0.0
	if !oldest.IsZero() {
		age = time.Since(oldest).Seconds()
	}
	e.single("postern_queue_oldest_seconds", "gauge", "Age of the oldest item that is to be delivered.", age)
}

// isMoving reports whether items of that state go on without an operator.
func isMoving(s queue.State) bool { return s == queue.Ready || s == queue.Waiting }

func (m *Metrics) writeListeners(e exposition) {
	e.family("postern_connections", "gauge", "Open connections by receive connector.")
	open := map[string]int{}
	for _, l := range m.source.Listens() {
		open[l.Connector] += l.Connections
	}
	for _, connector := range slices.Sorted(maps.Keys(open)) {
		e.sample("postern_connections", float64(open[connector]), "connector", connector)
	}
}

func (m *Metrics) writeAgents(e exposition) {
	agents := m.source.Agents()
	each := func(name, kind, help string, value func(Agent) float64) {
		e.family(name, kind, help)
		for _, a := range agents {
			e.sample(name, value(a), "agent", a.Name)
		}
	}
	each("postern_agent_ready", "gauge", "1 while at least one instance of the agent answers.", func(a Agent) float64 {
		if a.Ready {
			return 1
		}
		return 0
	})
	each("postern_agent_restarts_total", "counter", "Processes of the agent started anew.", func(a Agent) float64 { return float64(a.Restarts) })
	each("postern_agent_dead_letters_total", "counter", "Answers of the agent that came late or twice.", func(a Agent) float64 { return float64(a.Dead) })
	each("postern_agent_breaches_total", "counter", "Answers of the agent against the protocol.", func(a Agent) float64 { return float64(a.Breaches) })
}

func (m *Metrics) writeLatency(e exposition) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	names := slices.Sorted(maps.Keys(m.agents))
	e.family("postern_agent_event_seconds", "histogram", "Time from an event to its answer.")
	m.eachEvent(names, func(agent, event string, c *eventMetrics) { e.histogram(agent, event, c) })
	e.family("postern_agent_verdicts_total", "counter", "Answers of agents by event and verdict.")
	m.eachEvent(names, func(agent, event string, c *eventMetrics) {
		counts := c.verdictCounts()
		for _, verdict := range slices.Sorted(maps.Keys(counts)) {
			e.sample("postern_agent_verdicts_total", float64(counts[verdict]), "agent", agent, "event", event, "verdict", verdict)
		}
	})
}

// writeFailures writes what became of the events that agents failed at.
func (m *Metrics) writeFailures(e exposition) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e.family("postern_agent_failures_total", "counter", "Events that the agent failed at, by what became of them: skipped, defer, reject, hold, waiting, poison.")
	for _, name := range slices.Sorted(maps.Keys(m.agents)) {
		failures := m.agents[name].failures()
		for _, became := range slices.Sorted(maps.Keys(failures)) {
			e.sample("postern_agent_failures_total", float64(failures[became]), "agent", name, "became", became)
		}
	}
}

// writeCounters writes what agents count themselves. The names are bounded in number and form, see maxCounters.
func (m *Metrics) writeCounters(e exposition) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e.family("postern_agent_counter_total", "counter", "What agents count themselves.")
	for _, name := range slices.Sorted(maps.Keys(m.agents)) {
		counters := m.agents[name].snapshot()
		for _, counter := range slices.Sorted(maps.Keys(counters)) {
			e.sample("postern_agent_counter_total", float64(counters[counter]), "agent", name, "counter", counter)
		}
	}
}

func (m *Metrics) eachEvent(agents []string, fn func(agent, event string, c *eventMetrics)) {
	for _, name := range agents {
		for kind := range m.agents[name].events {
			if c := &m.agents[name].events[kind]; c.calls() > 0 {
				fn(name, pipeline.EventName(agentpb.EventKind(kind)), c)
			}
		}
	}
}

// exposition writes the text format.
type exposition struct{ io.Writer }

func (e exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (e exposition) single(name, kind, help string, value float64) {
	e.family(name, kind, help)
	e.sample(name, value)
}

// sample writes one line; labels are names and values in turn.
func (e exposition) sample(name string, value float64, labels ...string) {
	fmt.Fprint(e, name)
	for i := 0; i+1 < len(labels); i += 2 {
		separator := ","
		if i == 0 {
			separator = "{"
		}
		fmt.Fprintf(e, `%s%s="%s"`, separator, labels[i], escapeLabel(labels[i+1]))
	}
	if len(labels) > 0 {
		fmt.Fprint(e, "}")
	}
	fmt.Fprintf(e, " %v\n", value)
}

func (e exposition) histogram(agent, event string, c *eventMetrics) {
	const name = "postern_agent_event_seconds"
	var n uint64
	for i, bound := range bucketMicros {
		n += c.buckets[i].Load()
		e.sample(name+"_bucket", float64(n), "agent", agent, "event", event, "le", fmt.Sprint(float64(bound)/1e6))
	}
	n += c.buckets[len(bucketMicros)].Load()
	e.sample(name+"_bucket", float64(n), "agent", agent, "event", event, "le", "+Inf")
	e.sample(name+"_sum", float64(c.micros.Load())/1e6, "agent", agent, "event", event)
	e.sample(name+"_count", float64(n), "agent", agent, "event", event)
}

func escapeLabel(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}

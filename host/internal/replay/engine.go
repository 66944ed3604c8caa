// Package replay runs messages through the configured agents without any effect: the live receive connector,
// session, pipeline and categorizer, fed over a socket on loopback, with a store that keeps nothing and tables that
// are thrown away.
package replay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/categorizer"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/session"
	"github.com/posternmail/postern/host/internal/tracking"
)

// Options of an Engine.
type Options struct {
	Config    *config.Config
	Members   []pipeline.Member // agents that run for this engine alone
	Rows      Rows              // tables to start from
	Connector string            // receive connector to come in by; "": the first that is for the client
	Logger    hclog.Logger
}

// Engine replays messages, one after another.
type Engine struct {
	options     Options
	pipeline    *pipeline.Pipeline
	categorizer *categorizer.Categorizer
	tables      *Overlay
	directory   *directory.Directory
	spool       *spool
	ledger      *ledger
	open        map[string]*connector.Connector // by name
}

// New builds an engine. Close ends it.
func New(o Options) (*Engine, error) {
	plan, err := pipeline.NewPlan(o.Members)
	if err != nil {
		return nil, err
	}
	e := &Engine{options: o, tables: NewOverlay(o.Rows), spool: &spool{}, ledger: &ledger{}, open: map[string]*connector.Connector{}}
	e.directory = directory.New(o.Config.Directories, e.tables, o.Logger)
	if err := e.directory.Load(); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	e.pipeline = pipeline.New(pipeline.Options{
		Tables: e.directory.Tables(), Host: o.Config.Host, Accepted: o.Config.AcceptedDomains, Logger: o.Logger,
		NewID: queue.NewID, DryRun: true,
	})
	e.pipeline.SetPlan(plan)
	e.categorizer = categorizer.New(categorizer.Options{
		Pipeline: e.pipeline, Config: o.Config, Tables: e.directory.Tables(), Ledger: e.ledger, Logger: o.Logger,
	})
	return e, nil
}

// Close ends the engine's listeners.
func (e *Engine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var errs []error
	for _, c := range e.open {
		errs = append(errs, c.Shutdown(ctx))
	}
	return errors.Join(errs...)
}

// Report of one message.
type Report struct {
	Name       string             `json:"name"` // file, with the number of the message in it
	Client     string             `json:"client"`
	Helo       string             `json:"helo"`
	Connector  string             `json:"connector"`
	Sender     string             `json:"sender"`
	Recipients []string           `json:"recipients"`
	Result     string             `json:"result"` // "accepted", "refused", "put off"
	Dialog     []Exchange         `json:"dialog"`
	Verdicts   []tracking.Verdict `json:"verdicts"` // in the order of the events
	Items      []Item             `json:"items"`    // what would be stored
	Records    []tracking.Record  `json:"records"`  // what the ledger would say
	Micros     int64              `json:"micros"`
}

// Exchange is a command with its reply.
type Exchange struct {
	Command string `json:"command"`
	Reply   string `json:"reply"`
}

// Item is one envelope copy that would be stored.
type Item struct {
	State      string   `json:"state"` // ready, quarantined, parked, waiting
	Origin     string   `json:"origin"`
	Sender     string   `json:"sender"`
	Recipients []string `json:"recipients"`
	Hop        string   `json:"hop,omitempty"`
	Agent      string   `json:"agent,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Size       int64    `json:"size"`
}

// Replay sends m as a client would and reports what came of it. An error means that the replay itself failed.
func (e *Engine) Replay(ctx context.Context, m Message) (*Report, error) {
	spec, err := e.connectorFor(m.Client.Addr())
	if err != nil {
		return nil, err
	}
	c, err := e.connect(spec)
	if err != nil {
		return nil, err
	}
	report := &Report{Name: m.Name, Client: m.Client.String(), Helo: m.Helo, Connector: spec.Name, Sender: m.From, Recipients: m.To}
	start := time.Now()
	if err := m.send(ctx, c.Addrs()[0], report); err != nil {
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	if err := e.ledger.ended(ctx); err != nil {
		return nil, fmt.Errorf("%s: waiting for the end of the session: %w", m.Name, err)
	}
	for _, item := range e.spool.take() {
		if err := e.categorize(ctx, item, report); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	report.Micros = time.Since(start).Microseconds()
	report.Records = inOrder(e.ledger.take())
	for _, r := range report.Records {
		report.Verdicts = append(report.Verdicts, r.Verdicts...)
	}
	return report, nil
}

// inOrder puts the record of the session, which is written last and holds what was said before MAIL, first.
func inOrder(records []tracking.Record) []tracking.Record {
	slices.SortStableFunc(records, func(a, b tracking.Record) int {
		return rank(a) - rank(b)
	})
	return records
}

func rank(r tracking.Record) int {
	if r.Event == tracking.Session {
		return 0
	}
	return 1
}

// connectorFor chooses the receive connector as the client's address would, as far as a file can tell.
func (e *Engine) connectorFor(client netip.Addr) (config.ReceiveConnector, error) {
	var general *config.ReceiveConnector
	for i := range e.options.Config.ReceiveConnectors {
		c := &e.options.Config.ReceiveConnectors[i]
		switch {
		case e.options.Connector == c.Name:
			return *c, nil
		case e.options.Connector != "":
		case slices.ContainsFunc(c.Remote, func(p netip.Prefix) bool { return p.Contains(client.Unmap()) }):
			return *c, nil
		case len(c.Remote) == 0 && general == nil:
			general = c
		}
	}
	if general != nil {
		return *general, nil
	}
	if e.options.Connector != "" {
		return config.ReceiveConnector{}, fmt.Errorf("the configuration has no receive connector %q", e.options.Connector)
	}
	return config.ReceiveConnector{}, fmt.Errorf("no receive connector is for clients like %s", client)
}

// connect opens the connector on loopback. It believes the client's address from a PROXY header, has no TLS, and
// does not slow down: a dry run is for reading.
func (e *Engine) connect(spec config.ReceiveConnector) (*connector.Connector, error) {
	if c := e.open[spec.Name]; c != nil {
		return c, nil
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	spec.Listen, spec.ProxyFrom = []string{"127.0.0.1:0"}, []netip.Prefix{loopback}
	spec.TLS, spec.ImplicitTLS, spec.RequireTLS, spec.ProtocolLog = "", false, false, false
	spec.Limits.Tarpit, spec.Limits.TarpitSet = 0, true
	spec.Limits.MaxPerSource, spec.Limits.MessageRatePerSource = 0, 0
	c, err := connector.New(connector.Options{
		Config: spec, Host: e.options.Config.Host, Logger: e.options.Logger,
		Session: session.Deps{
			Pipeline: e.pipeline, Store: e.spool, Ledger: e.ledger, Config: e.options.Config, Logger: e.options.Logger,
		},
	})
	if err != nil {
		return nil, err
	}
	if err := c.Listen(); err != nil {
		return nil, err
	}
	go func() {
		if err := c.Serve(); err != nil {
			e.options.Logger.Error("replay", "error", err)
		}
	}()
	e.open[spec.Name] = c
	return c, nil
}

// categorize takes an item that would have been stored on its way right of the 250 line.
func (e *Engine) categorize(ctx context.Context, item *queue.Item, report *Report) error {
	if item.State != queue.Ready {
		report.Items = append(report.Items, describe(item))
		return nil
	}
	result, err := e.categorizer.Process(ctx, item)
	if err != nil {
		return fmt.Errorf("categorizing: %w", err)
	}
	items := result.Children
	if result.Item != nil {
		items = append([]*queue.Item{result.Item}, items...)
	}
	for _, one := range items {
		report.Items = append(report.Items, describe(one))
	}
	return nil
}

func describe(item *queue.Item) Item {
	d := Item{State: item.State.String(), Origin: item.Origin, Hop: item.Hop, Agent: item.Agent, Reason: item.Reason}
	if item.WaitingFor != "" {
		d.Reason = "waits for agent " + item.WaitingFor
	}
	if item.Mail == nil {
		return d
	}
	d.Sender, d.Size = item.Mail.Sender.Address.String(), item.Mail.Size()
	for _, r := range item.Mail.Recipients {
		d.Recipients = append(d.Recipients, r.Address.String())
	}
	return d
}

// spool takes what would be stored.
type spool struct {
	mu    sync.Mutex
	items []*queue.Item
}

// RoomFor implements session.Spool.
func (*spool) RoomFor(int64) error { return nil }

// NewBody implements session.Spool.
func (*spool) NewBody() (queue.BodyWriter, error) { return &body{}, nil }

// Commit implements session.Spool.
func (s *spool) Commit(items ...*queue.Item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = append(s.items, items...)
	return nil
}

func (s *spool) take() []*queue.Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := s.items
	s.items = nil
	return items
}

// body of a message in memory.
type body struct{ octets []byte }

// Write implements queue.BodyWriter.
func (b *body) Write(p []byte) (int, error) {
	b.octets = append(b.octets, p...)
	return len(p), nil
}

// Finish implements queue.BodyWriter.
func (b *body) Finish() (*envelope.Body, error) { return envelope.MemoryBody(b.octets), nil }

// Abort implements queue.BodyWriter.
func (b *body) Abort() {}

// ledger keeps the records of one message.
type ledger struct {
	mu      sync.Mutex
	records []tracking.Record
	end     chan struct{} // closed when the record of the session has come
}

// Write implements tracking.Ledger.
func (l *ledger) Write(r *tracking.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.DryRun = true
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	l.records = append(l.records, *r)
	if r.Event == tracking.Session {
		close(l.endLocked())
	}
}

func (l *ledger) endLocked() chan struct{} {
	if l.end == nil {
		l.end = make(chan struct{})
	}
	return l.end
}

// Full implements tracking.Ledger: a dry run shows everything.
func (l *ledger) Full() bool { return true }

// ended waits for the record of the session, which comes after the connection is closed.
func (l *ledger) ended(ctx context.Context) error {
	l.mu.Lock()
	end := l.endLocked()
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	select {
	case <-end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *ledger) take() []tracking.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	records := l.records
	l.records, l.end = nil, nil
	return records
}

var (
	_ tracking.Ledger  = (*ledger)(nil)
	_ session.Spool    = (*spool)(nil)
	_ queue.BodyWriter = (*body)(nil)
)

package host

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// reporter is an agent whose schedule makes a report of each row of its table, and deletes the row.
type reporter struct{ scripted }

func (r *reporter) Subscriptions() []*agentpb.Subscription {
	return []*agentpb.Subscription{{Event: agentpb.EventKind_EVENT_KIND_SCHEDULE, Every: "1h", MayChange: &agentpb.Changes{Spawn: true, Tables: []string{"seen"}},
		Tables: []*agentpb.TableUse{{Table: "seen"}}}}
}

func newReporter() *reporter {
	r := new(reporter)
	r.answer = func() *agentpb.Answer {
		a := continues()
		a.Spawns = []*agentpb.Spawn{{Recipients: [][]byte{[]byte("boss@ours.test")}, Before: []byte("Subject: report\r\n\r\none\r\n")}}
		a.Writes = []*agentpb.TableWrite{{Table: "seen", Key: []byte("k"), Op: agentpb.TableOp_TABLE_OP_DELETE}}
		return a
	}
	return r
}

// lost are tables that a crash overtakes: what is written does not reach the disk.
type lost struct{ tables.Store }

func (lost) Apply([]tables.Write) {}

// scheduling is what a turn of the reporter's schedule needs.
type scheduling struct {
	asks
	*right
	store tables.Store
}

func newScheduling(t *testing.T) *scheduling {
	t.Helper()
	r := newRight(t, nil, nil)
	store, err := tables.Open(t.TempDir(), tables.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	store.Apply([]tables.Write{{Table: "judge/seen", Key: "k", Op: tables.Put, Value: []byte(`{"n":1}`)}})
	way := r.routes.Load()
	return &scheduling{right: r, store: store, asks: asks{
		options: func() pipeline.Options {
			return pipeline.Options{Host: way.config.Host, Accepted: way.config.AcceptedDomains, NewID: queue.NewID, Tables: store, Logger: hclog.NewNullLogger()}
		},
		spawned: way.categorizer.Spawned, commit: r.queue.Commit, rows: store,
	}}
}

// turn of the schedule, after one that was at last.
func (s *scheduling) turn(last time.Time) error {
	s.t.Helper()
	args := &agentpb.ScheduleArguments{}
	s.store.List("judge/seen", "", func(r tables.Row) bool {
		args.Rows = append(args.Rows, &agentpb.Row{Table: "seen", Key: []byte(r.Key), Value: r.Value, CreatedUnixNanos: r.Created.UnixNano()})
		return true
	})
	id := turnID("judge", last, args)
	_, err := s.ask(context.Background(), pipeline.Member{Caller: newReporter(), Spec: &config.Agent{Name: "judge", Priority: 1}},
		&pipeline.Event{Kind: agentpb.EventKind_EVENT_KIND_SCHEDULE, ID: "schedule judge " + id + " 0",
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: args}}},
		&queue.Item{ID: id, Origin: queue.OriginSpawn, Session: envelope.Session{Trust: envelope.OwnServer}})
	return err
}

// reported tells whether the row is gone.
func (s *scheduling) reported() bool {
	_, there := s.store.Get("judge/seen", "k")
	return !there
}

// What an agent writes to its tables about mail that it makes is not written when the mail cannot be queued.
func TestScheduleWritesNothingOfMailThatIsNotQueued(t *testing.T) {
	s := newScheduling(t)
	s.asks.commit = func(...*queue.Item) error { return errors.New("no space left on device") }
	if err := s.turn(time.Now()); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("the turn ended with %v", err)
	}
	if s.reported() || !s.empty() {
		t.Errorf("the row is gone: %v; the queue has %+v", s.reported(), s.queue.Entries(nil))
	}
	s.asks.commit = s.queue.Commit
	if err := s.turn(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.queue.Entries(nil)); !s.reported() || n != 1 {
		t.Errorf("the row is gone: %v; the queue has %d messages", s.reported(), n)
	}
}

// A turn that a crash cuts off behind the commit of its mail is made again, and makes none twice, since that mail waits for the writes.
func TestScheduleMadeAgainAfterACrash(t *testing.T) {
	for name, last := range map[string]time.Time{"first turn": {}, "later turn": time.Now().Add(-time.Hour)} {
		t.Run(name, func(t *testing.T) {
			s := newScheduling(t)
			s.asks.rows = lost{s.store}
			if err := s.turn(last); err != nil || s.reported() {
				t.Fatalf("%v; the row is gone: %v", err, s.reported())
			}
			first := s.queue.Entries(nil)
			s.asks.rows = s.store
			if err := s.turn(last); err != nil || !s.reported() {
				t.Fatalf("%v; the row is gone: %v", err, s.reported())
			}
			second := s.queue.Entries(nil)
			if len(first) != 1 || len(second) != 1 || first[0].ID != second[0].ID || time.Until(second[0].Next) < heldAtMost/2 {
				t.Fatalf("first %+v, then %+v", first, second)
			}
			if err := s.queue.Retry(second[0].ID); err != nil {
				t.Fatal(err)
			}
			s.eventually("the report to be delivered", s.empty)
		})
	}
}

// Turns that differ in what they show, or in when the last was, are not the same.
func TestTurnID(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000)
	row := func(key string, created int64) *agentpb.Row {
		return &agentpb.Row{Table: "t", Key: []byte(key), Value: []byte(`{}`), CreatedUnixNanos: created}
	}
	seen := map[string]string{}
	for name, turn := range map[string]func() string{
		"one":         func() string { return turnID("a", at, &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("k", 1)}}) },
		"other agent": func() string { return turnID("b", at, &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("k", 1)}}) },
		"other time": func() string {
			return turnID("a", at.Add(time.Second), &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("k", 1)}})
		},
		"other page": func() string {
			return turnID("a", at, &agentpb.ScheduleArguments{Page: 1, Rows: []*agentpb.Row{row("k", 1)}})
		},
		"other row": func() string { return turnID("a", at, &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("l", 1)}}) },
		"newer row": func() string { return turnID("a", at, &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("k", 2)}}) },
		"no rows":   func() string { return turnID("a", at, &agentpb.ScheduleArguments{}) },
		"first turn": func() string {
			return turnID("a", time.Time{}, &agentpb.ScheduleArguments{Rows: []*agentpb.Row{row("k", at.UnixNano())}})
		},
	} {
		id := turn()
		if again := turn(); again != id || len(id) != len(queue.NewID()) {
			t.Errorf("%s: %s, then %s", name, id, again)
		}
		if other, there := seen[id]; there {
			t.Errorf("%s is the same turn as %s: %s", name, other, id)
		}
		seen[id] = name
	}
	first := turnID("a", time.Time{}, &agentpb.ScheduleArguments{})
	if again := turnID("a", time.Time{}, &agentpb.ScheduleArguments{}); again == first {
		t.Error("two first turns with nothing to go by are the same")
	}
}

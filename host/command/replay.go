package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/replay"
	"github.com/posternmail/postern/host/internal/tables"
)

// replayOptions are what `replay` was told.
type replayOptions struct {
	ip, helo, from, connector string
	fromSet                   bool
	to                        addressList
	all                       bool
}

// addressList is an option that may be given several times.
type addressList []string

// String implements flag.Value.
func (l *addressList) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *addressList) Set(s string) error {
	*l = append(*l, strings.Split(s, ",")...)
	return nil
}

func replayCommand(a *app) *command {
	var o replayOptions
	return &command{
		name: "replay", args: "FILE...", short: "Run messages through the configured agents without any effect, and show each verdict, edit and time.",
		long: "FILE is a message, an mbox, or a folder of them. The agents are instances of their own, on copies of their\n" +
			"state; what they write to tables is thrown away, and nothing is stored or delivered. Rows are read from the\n" +
			"running host, if there is one. What is not given of the envelope is taken from the file.",
		min: 1, max: -1, json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&o.ip, "ip", "127.0.0.1", "`ADDRESS` of the client")
			f.StringVar(&o.helo, "helo", "", "`NAME` the client greets with; default: its address")
			f.Func("from", "envelope sender `ADDRESS`; <> is the null sender", func(s string) error {
				o.from, o.fromSet = strings.Trim(s, "<>"), true
				return nil
			})
			f.Var(&o.to, "to", "envelope recipient `ADDRESS`; may be given several times")
			f.StringVar(&o.connector, "connector", "", "receive connector `NAME`; default: the one for the client")
			f.BoolVar(&o.all, "all", false, "list plain \"continue\" verdicts too")
		},
		run: func(ctx context.Context, files []string) error {
			envelope, err := o.envelope()
			if err != nil {
				return err
			}
			return a.replay(ctx, o, envelope, files)
		},
	}
}

func (o *replayOptions) envelope() (replay.Envelope, error) {
	client, err := netip.ParseAddr(o.ip)
	if err != nil {
		return replay.Envelope{}, &misuse{text: fmt.Sprintf("--ip %q is no IP address", o.ip)}
	}
	e := replay.Envelope{Client: client, Helo: o.helo, To: o.to}
	if e.Helo == "" {
		e.Helo = literal(client)
	}
	if o.fromSet {
		e.From = &o.from
	}
	return e, nil
}

// literal is the address literal of RFC 5321 section 4.1.3.
func literal(a netip.Addr) string {
	if a.Is4() || a.Is4In6() {
		return "[" + a.Unmap().String() + "]"
	}
	return "[IPv6:" + a.String() + "]"
}

func (a *app) replay(ctx context.Context, o replayOptions, e replay.Envelope, files []string) error {
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	c, err := a.loadOrExplain(ctx)
	if err != nil {
		return err
	}
	crew, err := a.hire(ctx, c)
	if err != nil {
		return err
	}
	defer crew.Dismiss()
	rows, closeRows, err := a.rows(ctx, c)
	if err != nil {
		return err
	}
	defer closeRows()
	engine, err := replay.New(replay.Options{
		Config: c, Members: crew.Members, Rows: rows, Connector: o.connector, Logger: a.logger("replay"),
	})
	if err != nil {
		return err
	}
	return errors.Join(a.replayAll(ctx, engine, o, e, files), engine.Close())
}

// replayAll prints a report a message, for programs a JSON object.
func (a *app) replayAll(ctx context.Context, engine *replay.Engine, o replayOptions, e replay.Envelope, files []string) error {
	results := map[string]int{}
	n := 0
	err := replay.Files(files, func(name string, raw []byte) error {
		message, err := e.Message(name, raw)
		if err != nil {
			return err
		}
		a.progress("message %d: %s", n+1, printable(name))
		report, err := engine.Replay(ctx, message)
		a.progressEnd()
		if err != nil {
			return err
		}
		n++
		results[report.Result]++
		if a.json {
			return a.printJSON(report)
		}
		if n > 1 {
			a.printf("\n")
		}
		a.printReport(report, o.all)
		return nil
	})
	if err != nil {
		return err
	}
	if n > 1 && !a.json {
		a.printf("\n%s: %d accepted, %d refused, %d put off\n", plural(n, "message"), results["accepted"], results["refused"], results["put off"])
	}
	return nil
}

func (a *app) printReport(r *replay.Report, all bool) {
	color := map[string]string{"accepted": green, "refused": red, "put off": yellow}[r.Result]
	a.printf("%s: %s\n", printable(r.Name), a.paint(color, r.Result))
	a.printf("  client %s (%s) at %s, from <%s> to %s\n", printable(r.Client), printable(r.Helo), printable(r.Connector), printable(r.Sender),
		printable(strings.Join(r.Recipients, ", ")))
	t := columns("  EVENT", "AGENT", "VERDICT", "TIME>", "WHY, EDITS AND STAMPS")
	for _, v := range r.Verdicts {
		var notes []string
		for _, note := range append([]string{v.Reason, v.Data, v.Failure}, append(v.Edits, v.Stamps...)...) {
			if note != "" {
				notes = append(notes, note)
			}
		}
		if v.Verdict == "continue" && len(notes) == 0 && !all {
			continue
		}
		t.row("  "+v.Event, strings.TrimSpace(v.Agent+" "+v.Version), v.Verdict, micros(v.Micros), strings.Join(notes, "; "))
	}
	if len(t.rows) > 0 {
		t.print(a.stdout, a.width)
	} else {
		a.printf("  no agent had an objection or changed anything (%d answers; --all lists them)\n", len(r.Verdicts))
	}
	if n := len(r.Dialog); n > 0 {
		a.printf("  %s was answered: %s\n", printable(r.Dialog[n-1].Command), printable(r.Dialog[n-1].Reply))
	}
	for _, i := range r.Items {
		a.printf("  would be %s\n", printable(itemText(i)))
	}
}

func itemText(i replay.Item) string {
	text := i.State
	switch i.State {
	case "ready":
		text = "sent to " + orDash(i.Hop)
	case "quarantined", "parked":
		text += " by " + orDash(i.Agent) + ": " + orDash(i.Reason)
	case "waiting":
		text = "kept: it " + i.Reason
	}
	text += ", for " + strings.Join(i.Recipients, ", ")
	if i.Origin == "dsn" || i.Origin == "spawn" {
		text = "a new message (" + i.Origin + "), " + text
	}
	return text
}

// rows finds the tables that a dry run starts from: those of the running host, or those it has left on disk.
func (a *app) rows(ctx context.Context, c *config.Config) (replay.Rows, func(), error) {
	var version admin.Version
	err := a.get(ctx, "/v1/version", nil, &version)
	if err == nil {
		return &remoteRows{ctx: ctx, client: a.running}, func() {}, nil
	}
	if !errors.Is(err, admin.ErrNotRunning) {
		return nil, nil, err
	}
	return leftRows(filepath.Join(c.Host.DataDir, "tables"), a.logger("tables"))
}

// leftRows reads a copy of the tables that a host has left: the host may come back at any moment, and wants them
// for itself.
func leftRows(from string, logger hclog.Logger) (replay.Rows, func(), error) {
	if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) {
		return replay.NoRows{}, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "postern-")
	if err != nil {
		return nil, nil, fmt.Errorf("tables: %w", err)
	}
	remove := func() { _ = os.RemoveAll(dir) }
	copied := filepath.Join(dir, "tables")
	if err := os.CopyFS(copied, os.DirFS(from)); err != nil {
		remove()
		return nil, nil, fmt.Errorf("copying the tables: %w", err)
	}
	store, err := tables.Open(copied, tables.Options{Logger: logger})
	if err != nil {
		remove()
		return nil, nil, fmt.Errorf("tables: %w", err)
	}
	return store, func() { _ = store.Close(); remove() }, nil
}

// remoteRows reads rows from the running host.
type remoteRows struct {
	ctx    context.Context
	client *admin.Client
}

// Get implements replay.Rows.
func (r *remoteRows) Get(table, key string) (tables.Row, bool) {
	return r.row(table, url.Values{"key": {key}, "exact": {"1"}})
}

// Match implements replay.Rows.
func (r *remoteRows) Match(table string, addr netip.Addr) (tables.Row, bool) {
	return r.row(table, url.Values{"key": {addr.String()}})
}

// row takes a failure for no row: the host was there a moment ago, and the verdicts show what was found.
func (r *remoteRows) row(table string, query url.Values) (tables.Row, bool) {
	var row admin.Row
	if err := r.client.Get(r.ctx, tablePath(table)+"/row", query, &row); err != nil {
		return tables.Row{}, false
	}
	found := tables.Row{Key: row.Key, Value: []byte(row.Value), Created: row.Created}
	if row.Expires != nil {
		found.Expires = *row.Expires
	}
	return found, true
}

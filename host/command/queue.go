package command

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/tracking"
)

func queueCommand(a *app) *command {
	return &command{name: "queue", short: "Look at the mail that waits, and move it.", subs: []*command{
		queueListCommand(a), queueShowCommand(a),
		queueChangeCommand(a, "retry", "Try items again now.", "retried"),
		queueChangeCommand(a, "suspend", "Stop items until they are resumed.", "suspended"),
		queueChangeCommand(a, "resume", "Let suspended and parked items go on.", "resumed"),
		queueChangeCommand(a, "remove", "Remove items. Nobody is notified; the ledger keeps a DROP record.", "removed"),
	}}
}

func queueListCommand(a *app) *command {
	var state, hop string
	var limit int
	return &command{
		name: "list", short: "List the items in the queue, oldest first.", json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&state, "state", "", "only items in `STATE`: ready, waiting, suspended, parked")
			f.StringVar(&hop, "hop", "", "only items for next `HOP`")
			f.IntVar(&limit, "limit", 100, "list at most `N` items, 0: all")
		},
		run: func(ctx context.Context, _ []string) error {
			query := url.Values{"state": {state}, "hop": {hop}, "limit": {fmt.Sprint(limit)}}
			nothing := "the queue is empty"
			if state != "" || hop != "" {
				nothing = "no such items"
			}
			return a.listItems(ctx, "/v1/queue", query, queueTable, nothing)
		},
	}
}

// listItems serves queue list and quarantine list.
func (a *app) listItems(ctx context.Context, path string, query url.Values, draw func(*app, []admin.Entry) *table, nothing string) error {
	var entries admin.Entries
	if err := a.get(ctx, path, query, &entries); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(entries)
	}
	a.list(draw(a, entries.Items), nothing)
	if more := entries.Total - len(entries.Items); more > 0 {
		fmt.Fprintf(a.stderr, "%d more; --limit 0 shows all\n", more)
	}
	return nil
}

func queueTable(a *app, items []admin.Entry) *table {
	t := columns("ITEM", "STATE", "AGE>", "SIZE>", "TRIES>", "NEXT>", "NEXT HOP", "SENDER", "TO>", "WHY")
	for _, e := range items {
		next := "-"
		if e.State == "ready" {
			next = a.until(e.Next)
		}
		t.row(e.ID, e.State, a.age(&e.Received), tracking.Size(e.Size), fmt.Sprint(e.Attempts), next, orDash(e.Hop), mailbox(e.Sender),
			fmt.Sprint(e.Recipients), why(e))
	}
	return t
}

// why an item is still there.
func why(e admin.Entry) string {
	switch {
	case e.WaitingFor != "":
		return "waits for agent " + e.WaitingFor
	case e.LastError != "":
		return e.LastError
	case e.Agent != "" || e.Reason != "":
		return strings.TrimPrefix(e.Agent+": "+e.Reason, ": ")
	}
	return ""
}

func queueShowCommand(a *app) *command {
	var raw bool
	return &command{
		name: "show", args: "ID", short: "Show one item: envelope, state and what agents left on it.", min: 1, max: 1, json: true, host: true,
		flags: func(f *flag.FlagSet) { f.BoolVar(&raw, "raw", false, "print the message itself") },
		run: func(ctx context.Context, args []string) error {
			return a.showItem(ctx, "/v1/queue/", args[0], raw)
		},
	}
}

func (a *app) showItem(ctx context.Context, path, id string, raw bool) error {
	if raw {
		return a.raw(ctx, id)
	}
	var item admin.Item
	if err := a.get(ctx, path+url.PathEscape(id), nil, &item); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(item)
	}
	a.printItem(&item)
	return nil
}

func (a *app) raw(ctx context.Context, id string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.explained(c.Raw(ctx, "/v1/queue/"+url.PathEscape(id)+"/raw", a.stdout))
}

func (a *app) printItem(i *admin.Item) {
	facts := &table{}
	fact := func(name, value string) {
		if value != "" {
			facts.row(name, value)
		}
	}
	fact("item", i.ID)
	fact("message", i.Message)
	fact("state", strings.TrimSpace(i.State+" "+inBrackets(why(i.Entry))))
	fact("made from", i.Parent)
	fact("origin", i.Origin)
	fact("received", stamp(i.Received)+", "+a.age(&i.Received)+" ago")
	fact("session", strings.TrimSpace(i.Session+" "+i.Client+" "+inBrackets(i.Helo)))
	fact("connector", i.Connector)
	fact("traffic", i.Traffic)
	fact("next hop", i.Hop)
	fact("attempts", fmt.Sprint(i.Attempts))
	if i.State == "ready" {
		fact("next attempt", stamp(i.Next)+", "+a.until(i.Next))
	}
	if !i.Expires.IsZero() {
		fact("expires", stamp(i.Expires))
	}
	fact("last error", i.LastError)
	fact("size", tracking.Size(i.Size))
	fact("sender", mailbox(i.Sender))
	fact("subject", i.Subject)
	fact("Message-ID", i.MessageID)
	fact("must see it", strings.Join(i.Missed, ", "))
	for _, name := range slices.Sorted(maps.Keys(i.Stamps)) {
		fact("stamp", name+" = "+i.Stamps[name])
	}
	facts.print(a.stdout, a.width)

	a.printf("\n")
	to := columns("RECIPIENT", "STATE", "REPLY", "REMOTE", "ORIGINALLY")
	for _, r := range i.Envelope {
		to.row(r.Address, r.State, r.Reply, r.Remote, r.Original)
	}
	to.print(a.stdout, a.width)
	if i.Evidence != "" {
		a.printf("\nevidence:\n%s\n", printableText(i.Evidence))
	}
}

// queueChangeCommand makes one of the commands that do something to items.
func queueChangeCommand(a *app, name, short, done string) *command {
	var s admin.Selection
	return &command{
		name: name, args: "[ID...]", short: short, long: "Items are named by their id or by that of their message, or chosen with --hop, --state or --all.",
		max: -1, json: true, host: true,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&s.Hop, "hop", "", "all items for next `HOP`")
			f.StringVar(&s.State, "state", "", "all items in `STATE`")
			f.BoolVar(&s.All, "all", false, "all items in the queue")
		},
		run: func(ctx context.Context, args []string) error {
			chosen := s.Hop != "" || s.State != "" || s.All
			switch {
			case len(args) == 0 && !chosen:
				return &misuse{text: "name items by ID, or choose them with --hop, --state or --all"}
			case len(args) > 0 && chosen:
				return &misuse{text: "either name items by ID or choose them with options"}
			}
			s.IDs = args
			return a.change(ctx, "/v1/queue/"+name, s, done)
		},
	}
}

// change has the host do something to items and says to which it was done.
func (a *app) change(ctx context.Context, path string, s admin.Selection, done string) error {
	var changed admin.Changed
	if err := a.post(ctx, path, s, &changed); err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(changed); err != nil {
			return err
		}
	} else {
		a.printChanged(changed, done)
	}
	if len(changed.Failed) > 0 {
		return errSilent
	}
	return nil
}

func (a *app) printChanged(changed admin.Changed, done string) {
	for _, id := range slices.Sorted(maps.Keys(changed.Failed)) {
		a.note("%s: %s", printable(id), printable(changed.Failed[id]))
	}
	switch n := len(changed.Done); {
	case n == 1:
		a.printf("%s %s\n", done, changed.Done[0])
	case n > 1 || len(changed.Failed) == 0:
		a.printf("%s %s\n", done, plural(n, "item"))
	}
}

func quarantineCommand(a *app) *command {
	return &command{name: "quarantine", short: "Look at the mail that agents kept for you, release it or delete it.", subs: []*command{
		{
			name: "list", short: "List the messages in quarantine, oldest first.", json: true, host: true,
			run: func(ctx context.Context, _ []string) error {
				return a.listItems(ctx, "/v1/quarantine", url.Values{"limit": {"0"}}, quarantineTable, "the quarantine is empty")
			},
		},
		quarantineShowCommand(a),
		quarantineChangeCommand(a, "release", "Deliver messages after all.", "released"),
		quarantineChangeCommand(a, "delete", "Delete messages for good.", "deleted"),
	}}
}

func quarantineTable(a *app, items []admin.Entry) *table {
	t := columns("ITEM", "AGE>", "SIZE>", "AGENT", "REASON", "SENDER", "TO>")
	for _, e := range items {
		t.row(e.ID, a.age(&e.Received), tracking.Size(e.Size), orDash(e.Agent), orDash(e.Reason), mailbox(e.Sender), fmt.Sprint(e.Recipients))
	}
	return t
}

func quarantineShowCommand(a *app) *command {
	var raw bool
	return &command{
		name: "show", args: "ID", short: "Show one message in quarantine: who kept it and why.", min: 1, max: 1, json: true, host: true,
		flags: func(f *flag.FlagSet) { f.BoolVar(&raw, "raw", false, "print the message itself") },
		run: func(ctx context.Context, args []string) error {
			return a.showItem(ctx, "/v1/quarantine/", args[0], raw)
		},
	}
}

func quarantineChangeCommand(a *app, name, short, done string) *command {
	return &command{
		name: name, args: "ID...", short: short, min: 1, max: -1, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			return a.change(ctx, "/v1/quarantine/"+name, admin.Selection{IDs: args}, done)
		},
	}
}

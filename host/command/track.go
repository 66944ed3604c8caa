package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tracking"
)

// trackOptions are what `track` was told to look for.
type trackOptions struct {
	query    tracking.Query
	from, to string
	follow   bool
}

func trackCommand(a *app) *command {
	var o trackOptions
	return &command{
		name: "track", short: "Search the ledger.", json: true, host: true,
		long: "Works without a running host too: it then reads the ledger of the configuration.\n" +
			"TIME is 2006-01-02, 2006-01-02T15:04:05Z or an age such as 2h or 3d.\n" +
			"ADDRESS is a mailbox, or a domain; <> is the null sender.",
		flags: o.flags,
		run: func(ctx context.Context, _ []string) error {
			if err := cmp.Or(o.times(a.now()), o.knownEvent()); err != nil {
				return err
			}
			if o.follow {
				return a.follow(ctx, o.query)
			}
			return a.track(ctx, o.query)
		},
	}
}

func (o *trackOptions) flags(f *flag.FlagSet) {
	f.StringVar(&o.query.ID, "id", "", "records about this session, message or item `ID`, and what came of it")
	f.StringVar(&o.query.Message, "message", "", "records of this message: its id or its `MESSAGE-ID` field")
	f.StringVar(&o.query.Sender, "sender", "", "records with this sender `ADDRESS`")
	f.StringVar(&o.query.Recipient, "recipient", "", "records with this recipient `ADDRESS`")
	f.StringVar(&o.query.Event, "event", "", "records of this `EVENT`: RECEIVE, REJECT, SEND, DEFER, FAIL, QUARANTINE...")
	f.StringVar(&o.query.Agent, "agent", "", "records in which this agent (by `NAME`) said something")
	f.StringVar(&o.from, "from", "", "records from this `TIME` on")
	f.StringVar(&o.to, "to", "", "records before this `TIME`")
	f.IntVar(&o.query.Limit, "limit", 100, "the newest `N` records, 0: all")
	f.BoolVar(&o.follow, "follow", false, "show records as they are written")
}

// knownEvent refuses an event that no record has: finding none would mean something else.
func (o *trackOptions) knownEvent() error {
	name, names := strings.ToUpper(o.query.Event), tracking.EventNames()
	if name == "" || slices.Contains(names, name) {
		return nil
	}
	return &misuse{text: fmt.Sprintf("the ledger has no event %q: it has %s", printable(o.query.Event), strings.Join(names, ", "))}
}

func (o *trackOptions) times(now time.Time) error {
	for text, at := range map[*string]*time.Time{&o.from: &o.query.From, &o.to: &o.query.To} {
		if *text == "" {
			continue
		}
		t, err := parseTime(*text, now)
		if err != nil {
			return err
		}
		*at = t
	}
	return nil
}

func parseTime(text string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	if age, err := config.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	return time.Time{}, &misuse{text: fmt.Sprintf("time %q is neither a date nor an age such as 2h", text)}
}

// values writes q as the parameters of the control socket.
func values(q tracking.Query) url.Values {
	v := url.Values{"limit": {fmt.Sprint(q.Limit)}}
	for name, text := range map[string]string{"id": q.ID, "message": q.Message, "sender": q.Sender, "recipient": q.Recipient,
		"event": q.Event, "agent": q.Agent} {
		if text != "" {
			v.Set(name, text)
		}
	}
	for name, at := range map[string]time.Time{"from": q.From, "to": q.To} {
		if !at.IsZero() {
			v.Set(name, at.Format(time.RFC3339Nano))
		}
	}
	return v
}

func (a *app) track(ctx context.Context, q tracking.Query) error {
	var found admin.Track
	err := a.get(ctx, "/v1/track", values(q), &found)
	if errors.Is(err, admin.ErrNotRunning) {
		found.Records, found.More, err = a.offline(ctx, q)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(found)
	}
	t := columns("TIME", "EVENT", "ID", "SENDER", "RECIPIENTS", "SIZE>", "WHAT")
	for i := range found.Records {
		t.row(trackRow(&found.Records[i])...)
	}
	a.list(t, "no records")
	if found.More {
		fmt.Fprintf(a.stderr, "older records are left out; --limit 0 shows all\n")
	}
	return nil
}

// offline reads the ledger of the configuration. With --socket there is none to find it by.
func (a *app) offline(ctx context.Context, q tracking.Query) ([]tracking.Record, bool, error) {
	folder, err := a.ledger()
	if err != nil {
		return nil, false, err
	}
	return folder.Search(ctx, q)
}

func (a *app) ledger() (tracking.Folder, error) {
	if a.socket != "" {
		return "", fmt.Errorf("%w: nobody answers at %s", admin.ErrNotRunning, a.socket)
	}
	dir, err := a.dataDir()
	if err != nil {
		return "", err
	}
	a.note("no host is running: reading the ledger in %s", printable(dir))
	return tracking.Folder(tracking.Dir(dir)), nil
}

func trackRow(r *tracking.Record) []string {
	id := r.Message
	if id == "" {
		id = r.Session
	}
	if r.Item != "" {
		id = r.Item
	}
	sender := "-"
	if r.Sender != nil {
		sender = mailbox(*r.Sender)
	}
	size := "-"
	if r.Size > 0 {
		size = tracking.Size(r.Size)
	}
	scenes := r.Scenes()
	what := scenes[len(scenes)-1].Text
	if r.Reply != "" && r.Event != tracking.Receive {
		what += ", reply " + r.Reply
	}
	return []string{stamp(r.Time), r.Event, orDash(id), sender, recipients(r.Recipients), size, what}
}

func recipients(list []tracking.Recipient) string {
	switch len(list) {
	case 0:
		return "-"
	case 1:
		return list[0].Address
	}
	return fmt.Sprintf("%s +%d", list[0].Address, len(list)-1)
}

// follow prints records as they come: a line each, for people or for programs.
func (a *app) follow(ctx context.Context, q tracking.Query) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	err = c.Lines(ctx, http.MethodGet, "/v1/follow", values(q), nil, func(line []byte) error {
		if a.json {
			a.printf("%s\n", line)
			return nil
		}
		var r tracking.Record
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("reading the answer of the host: %w", err)
		}
		row := trackRow(&r)
		for i := range row {
			row[i] = printable(row[i])
		}
		a.printf("%s\n", strings.Join(row, "  "))
		return nil
	})
	return a.explained(err)
}

func whyCommand(a *app) *command {
	return &command{
		name: "why", args: "ID", short: "Tell the story of a session, a message or an item, refused ones included.",
		long: "ID is what stands in brackets in the replies of the host, in Received fields and in notifications,\n" +
			"or a Message-ID with its angle brackets.",
		min: 1, max: 1, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			id := strings.Trim(args[0], "[] ")
			var story tracking.Story
			err := a.get(ctx, "/v1/why/"+url.PathEscape(id), nil, &story)
			if errors.Is(err, admin.ErrNotRunning) {
				err = a.offlineStory(ctx, id, &story)
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(story)
			}
			a.printStory(&story)
			return nil
		},
	}
}

func (a *app) offlineStory(ctx context.Context, id string, story *tracking.Story) error {
	folder, err := a.ledger()
	if err != nil {
		return err
	}
	told, err := tracking.Tell(ctx, folder, id)
	if err != nil {
		return err
	}
	*story = *told
	return nil
}

func (a *app) printStory(s *tracking.Story) {
	a.printf("%s\n", a.paint(bold, printable(s.Summary)))
	for _, now := range s.Now {
		a.printf("%s %s\n", a.paint(yellow, "now:"), printable(now))
	}
	if len(s.Scenes) == 0 {
		return
	}
	a.printf("\nfrom %s\n", stamp(s.Scenes[0].Time))
	a.printScenes(s.Scenes)
}

// lines of a text, such as the last words of an agent, without empty ones at its end.
func lines(text string) []string {
	return strings.Split(printableText(strings.TrimRight(text, "\r\n")), "\n")
}

// printScenes shows steps in columns, with what belongs to a step below it.
func (a *app) printScenes(scenes []tracking.Scene) {
	start := scenes[0].Time
	who, event := 0, 0
	for _, s := range scenes {
		who, event = max(who, len([]rune(printable(s.Who)))), max(event, len([]rune(printable(s.Event))))
	}
	for _, s := range scenes {
		took := ""
		if s.Micros > 0 {
			took = " (" + micros(s.Micros) + ")"
		}
		text := lines(s.Text)
		a.printf("%9s  %-*s  %-*s  %s%s\n", "+"+span(max(s.Time.Sub(start), 0)), who, printable(s.Who), event, printable(s.Event),
			text[0], took)
		for _, detail := range text[1:] {
			a.printf("%9s  %-*s  %-*s    %s\n", "", who, "", event, "", detail)
		}
		for _, detail := range s.Details {
			for i, line := range lines(detail) {
				a.printf("%9s  %-*s  %-*s    %s%s\n", "", who, "", event, "", strings.Repeat("  ", min(i, 1)), line)
			}
		}
	}
}

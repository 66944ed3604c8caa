package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/admin/admintest"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// shortDir is a folder whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func serve(t *testing.T) (*admintest.Host, *admin.Client) {
	t.Helper()
	h := admintest.New(t)
	return h, admin.NewClient(h.Serve(t, shortDir(t)))
}

func get[T any](t *testing.T, c *admin.Client, path string, query url.Values) (answer T) {
	t.Helper()
	if err := c.Get(t.Context(), path, query, &answer); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return answer
}

func post[T any](t *testing.T, c *admin.Client, path string, body any) (answer T) {
	t.Helper()
	if err := c.Post(t.Context(), path, body, &answer); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return answer
}

// failure is what the host answered with where it could not do something.
func failure(t *testing.T, err error) *admin.RemoteError {
	t.Helper()
	var remote *admin.RemoteError
	if !errors.As(err, &remote) {
		t.Fatalf("%v is no problem told by the host", err)
	}
	return remote
}

func TestSocket(t *testing.T) {
	h := admintest.New(t)
	dir := shortDir(t)
	socket := h.Serve(t, dir)
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket has mode %v", info.Mode())
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the socket there is %v, %v", entries, err)
	}
	if _, err := admin.Serve(socket, h.Deps()); err == nil || !strings.Contains(err.Error(), "another host answers") {
		t.Errorf("a second host on one socket: %v", err)
	}
}

func TestSocketOfAKilledHostIsReplaced(t *testing.T) {
	h := admintest.New(t)
	dir := shortDir(t)
	// What a killed host leaves: a name that nobody listens at.
	if err := os.WriteFile(admin.SocketPath(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := admin.NewClient(h.Serve(t, dir))
	if v := get[admin.Version](t, c, "/v1/version", nil); v.Version != "1.2.3" {
		t.Errorf("%+v", v)
	}
}

func TestSocketPathThatIsTooLong(t *testing.T) {
	_, err := admin.Serve("/tmp/"+strings.Repeat("x", 110)+"/control.sock", admintest.New(t).Deps())
	if err == nil || !strings.Contains(err.Error(), "shorter data_dir") {
		t.Errorf("%v", err)
	}
}

func TestClosedServerLeavesNoSocket(t *testing.T) {
	dir := shortDir(t)
	server, err := admin.Serve(admin.SocketPath(dir), admintest.New(t).Deps())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	err = admin.NewClient(admin.SocketPath(dir)).Get(t.Context(), "/v1/version", nil, &admin.Version{})
	if !errors.Is(err, admin.ErrNotRunning) {
		t.Errorf("%v", err)
	}
}

func TestStatus(t *testing.T) {
	_, c := serve(t)
	s := get[admin.Status](t, c, "/v1/status", nil)
	if s.Name != "edge.example.org" || s.Version.Version != "1.2.3" || c.Version() != "1.2.3" || s.PID != os.Getpid() {
		t.Errorf("%+v", s)
	}
	if s.Quarantined != 2 || s.Queue.States["ready"] != 1 || s.Queue.States["parked"] != 1 || s.Queue.States["quarantined"] != 0 {
		t.Errorf("queue %+v, %d in quarantine", s.Queue, s.Quarantined)
	}
	if s.Queue.Oldest == nil || !s.Queue.Oldest.Equal(admintest.Now.Add(-3*time.Hour)) {
		t.Errorf("oldest %v", s.Queue.Oldest)
	}
	if s.Totals.Received != 1 || s.Totals.Refused != 2 || s.Totals.Delivered != 1 || s.Totals.Deferred != 1 || s.Totals.Reports != 1 {
		t.Errorf("%+v", s.Totals)
	}
	if len(s.Degraded) != 2 || !strings.Contains(s.Degraded[1], "1 parked") {
		t.Errorf("%q", s.Degraded)
	}
	if len(s.Agents) != 3 || s.Agents[0].Name != "contentfilter" || s.Agents[1].State != "disabled" || s.Agents[2].State != "down" {
		t.Errorf("%+v", s.Agents)
	}
}

func TestListsAreNeverNull(t *testing.T) {
	h := admintest.New(t)
	d := h.Deps()
	d.Agents, d.Listeners = admin.Agents(func() []admin.Running { return nil }), func() []admin.Listener { return nil }
	d.Health = func() (degraded, drift []string) { return nil, nil }
	d.Pipeline = func() []eventPlan { return nil }
	socket := admin.SocketPath(shortDir(t))
	server, err := admin.Serve(socket, d)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c := admin.NewClient(socket)
	for _, path := range []string{"/v1/agents", "/v1/pipeline", "/v1/track?sender=nobody%40x.example", "/v1/tables/reputation", "/v1/queue?hop=none"} {
		var raw json.RawMessage
		if err := c.Get(t.Context(), path, nil, &raw); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if bytes.Contains(raw, []byte("null")) {
			t.Errorf("%s: %s", path, raw)
		}
	}
}

func TestAgents(t *testing.T) {
	h, c := serve(t)
	one := get[admin.Agent](t, c, "/v1/agents/contentfilter", nil)
	if one.Version != "2.1.0" || one.Category != "antispam" || one.State != "up" || one.Breaches != 2 || one.Dead != 3 || one.Restarts != 5 {
		t.Errorf("%+v", one)
	}
	if len(one.Events) != 1 || one.Events[0].Event != "OnEndOfData" || !slices.Equal(one.Events[0].Changes, []string{"verdict", "headers", "stamp scl"}) {
		t.Errorf("%+v", one.Events)
	}
	if one = post[admin.Agent](t, c, "/v1/agents/contentfilter/restart", nil); one.Restarts != 6 {
		t.Errorf("%+v", one)
	}
	h.Agent.Broken = true
	for path, want := range map[string]string{
		"/v1/agents/contentfilter/restart": "model.bin",
		"/v1/agents/antivirus/restart":     "not running",
		"/v1/agents/nobody/restart":        "no agent",
	} {
		if err := failure(t, c.Post(t.Context(), path, nil, &one)); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func ids(e admin.Entries) (list []string) {
	for _, i := range e.Items {
		list = append(list, i.ID)
	}
	return list
}

func TestQueueListing(t *testing.T) {
	_, c := serve(t)
	for _, test := range []struct {
		path  string
		want  string
		total int
	}{
		{"/v1/queue", "aaaaaa.1 aaaaab.1 aaaaac.1 aaaaad.1", 4},
		{"/v1/queue?limit=1", "aaaaaa.1", 4},
		{"/v1/queue?state=waiting", "aaaaab.1", 1},
		{"/v1/queue?hop=to-hub%2F10.30.0.11", "aaaaaa.1 aaaaac.1", 2},
		{"/v1/quarantine", "aaaaae.1 aaaaae.1-x", 2},
	} {
		e := get[admin.Entries](t, c, test.path, nil)
		if got := strings.ReplaceAll(strings.Join(ids(e), " "), "06azv5q8e0", ""); got != test.want || e.Total != test.total {
			t.Errorf("%s: %s of %d, want %s of %d", test.path, got, e.Total, test.want, test.total)
		}
	}
	for _, path := range []string{"/v1/queue?state=gone", "/v1/queue?limit=x", "/v1/queue?limit=-1"} {
		if err := failure(t, c.Get(t.Context(), path, nil, &admin.Entries{})); err.Status != http.StatusBadRequest {
			t.Errorf("%s: %d %v", path, err.Status, err)
		}
	}
}

func TestItem(t *testing.T) {
	_, c := serve(t)
	i := get[admin.Item](t, c, "/v1/queue/06azv5q8e0aaaaaa.1", nil)
	if i.State != "ready" || i.Subject != "Offer of the month" || i.MessageID != "<m1@a.example>" || i.Stamps["scl"] != "5" || i.Client != "192.0.2.7:4321" {
		t.Errorf("%+v", i)
	}
	if len(i.Envelope) != 1 || i.Envelope[0].Address != "bob@example.org" || i.Envelope[0].State != "pending" {
		t.Errorf("%+v", i.Envelope)
	}
	var raw bytes.Buffer
	if err := c.Raw(t.Context(), "/v1/queue/06azv5q8e0aaaaaa.1/raw", &raw); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(raw.String(), "Received: ") || !strings.HasSuffix(raw.String(), "\r\n\r\nHello\r\n") {
		t.Errorf("%q", raw.String())
	}
	for path, want := range map[string]string{
		"/v1/queue/06azv5q8e0zzzzzz.1":      "no item",
		"/v1/quarantine/06azv5q8e0aaaaaa.1": "not in quarantine but ready",
	} {
		if err := failure(t, c.Get(t.Context(), path, nil, &i)); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestQueueChanges(t *testing.T) {
	h, c := serve(t)
	item := func(id string) *queue.Item {
		i, err := h.Queue.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	const a, b, parked = "06azv5q8e0aaaaaa.1", "06azv5q8e0aaaaac.1", "06azv5q8e0aaaaad.1"
	changed := post[admin.Changed](t, c, "/v1/queue/suspend", admin.Selection{IDs: []string{a, "none.1"}})
	if !slices.Equal(changed.Done, []string{a}) || changed.Failed["none.1"] != "no such item" || item(a).State != queue.Suspended {
		t.Errorf("%+v", changed)
	}
	changed = post[admin.Changed](t, c, "/v1/queue/resume", admin.Selection{Hop: "to-hub/10.30.0.11"})
	if len(changed.Done) != 2 || item(a).State != queue.Ready || item(b).State != queue.Ready {
		t.Errorf("%+v", changed)
	}
	post[admin.Changed](t, c, "/v1/queue/retry", admin.Selection{IDs: []string{a}})
	if !item(a).Next.Equal(admintest.Now) {
		t.Errorf("next attempt %v", item(a).Next)
	}
	changed = post[admin.Changed](t, c, "/v1/queue/remove", admin.Selection{State: "parked"})
	if !slices.Equal(changed.Done, []string{parked}) {
		t.Errorf("%+v", changed)
	}
	if _, err := h.Queue.Load(parked); err == nil {
		t.Error("removed, and still there")
	}
	if err := failure(t, c.Post(t.Context(), "/v1/queue/remove", admin.Selection{}, &changed)); err.Status != http.StatusBadRequest {
		t.Errorf("removing nothing in particular: %v", err)
	}
	if err := failure(t, c.Post(t.Context(), "/v1/queue/remove", map[string]bool{"al": true}, &changed)); !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("%v", err)
	}
	// What lies in quarantine is not reached by a command for the queue, whatever it selects.
	changed = post[admin.Changed](t, c, "/v1/queue/remove", admin.Selection{All: true})
	if len(changed.Done) != 3 || len(changed.Failed) != 0 || item("06azv5q8e0aaaaae.1").State != queue.Quarantined {
		t.Errorf("%+v", changed)
	}
	changed = post[admin.Changed](t, c, "/v1/queue/remove", admin.Selection{IDs: []string{"06azv5q8e0aaaaae.1"}})
	if len(changed.Done) != 0 || changed.Failed["06azv5q8e0aaaaae.1"] != "it is quarantined" {
		t.Errorf("%+v", changed)
	}
}

func TestQuarantine(t *testing.T) {
	h, c := serve(t)
	const kept, copied = "06azv5q8e0aaaaae.1", "06azv5q8e0aaaaae.1-x"
	changed := post[admin.Changed](t, c, "/v1/quarantine/release", admin.Selection{IDs: []string{copied}})
	if !slices.Equal(changed.Done, []string{copied}) {
		t.Fatalf("%+v", changed)
	}
	if i, err := h.Queue.Load(copied); err != nil || i.State != queue.Ready {
		t.Errorf("%+v %v", i, err)
	}
	changed = post[admin.Changed](t, c, "/v1/quarantine/delete", admin.Selection{IDs: []string{kept}})
	if !slices.Contains(changed.Done, kept) {
		t.Errorf("%+v", changed)
	}
	found := get[admin.Track](t, c, "/v1/track", url.Values{"id": {kept}})
	if len(found.Records) != 2 || found.Records[0].Event != tracking.Release || found.Records[1].Event != tracking.Drop {
		t.Fatalf("%+v", found.Records)
	}
	r := found.Records[0]
	if !strings.Contains(r.Reason, "operator (uid ") || r.Subject != "Offer of the month" || r.Recipients[0].Address != "bob@example.org" || *r.Sender != "ann@a.example" {
		t.Errorf("%+v", r)
	}
}

func TestTables(t *testing.T) {
	_, c := serve(t)
	page := get[admin.Rows](t, c, "/v1/tables/greylist", url.Values{"limit": {"2"}})
	if len(page.Rows) != 2 || !page.More {
		t.Errorf("%+v", page)
	}
	page = get[admin.Rows](t, c, "/v1/tables/greylist", url.Values{"after": {page.Rows[1].Key}})
	if len(page.Rows) != 3 || page.More {
		t.Errorf("%+v", page)
	}
	page = get[admin.Rows](t, c, "/v1/tables/greylist", url.Values{"prefix": {"192.0.2.3"}})
	if len(page.Rows) != 1 {
		t.Errorf("%+v", page)
	}
	post[admin.Table](t, c, "/v1/tables/ip-block", []admin.RowWrite{{Key: "203.0.113.0/24", Value: `{"comment":"x"}`, TTL: "30d"}})
	row := get[admin.Row](t, c, "/v1/tables/ip-block/row", url.Values{"key": {"203.0.113.9"}})
	if row.Key != "203.0.113.0/24" || row.Expires == nil || !row.Expires.Equal(admintest.Now.AddDate(0, 0, 30)) {
		t.Errorf("%+v", row)
	}
	if err := c.Get(t.Context(), "/v1/tables/ip-block/row", url.Values{"key": {"203.0.113.9"}, "exact": {"1"}}, &row); failure(t, err).Status != http.StatusNotFound {
		t.Errorf("%v", err)
	}
	if err := c.Delete(t.Context(), "/v1/tables/ip-block/row", url.Values{"key": {"203.0.113.0/24"}}, &row); err != nil {
		t.Error(err)
	}
	if err := c.Delete(t.Context(), "/v1/tables/ip-block/row", url.Values{"key": {"203.0.113.0/24"}}, &row); failure(t, err).Status != http.StatusNotFound {
		t.Errorf("%v", err)
	}
	for want, rows := range map[string][]admin.RowWrite{
		"the key is empty":                          {{Value: "{}"}},
		"row 2 (b): the value is not a JSON object": {{Key: "a"}, {Key: "b", Value: "[1]"}},
		"row 1 (a): ttl":                            {{Key: "a", TTL: "soon"}},
		"4096 are allowed":                          {{Key: "a", Value: `{"x":"` + strings.Repeat("x", 5000) + `"}`}},
	} {
		err := failure(t, c.Post(t.Context(), "/v1/tables/reputation", rows, &admin.Table{}))
		if err.Status != http.StatusBadRequest || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if names := get[[]admin.Table](t, c, "/v1/tables", nil); len(names) != 2 {
		t.Errorf("a list with a mistake was put in part: %+v", names)
	}
	for _, name := range []string{"ip-blok", "greylists", "new", "contentfilter/own", "nobody/own"} {
		path := "/v1/tables/" + url.PathEscape(name)
		for what, err := range map[string]error{
			"list":   c.Get(t.Context(), path, nil, &page),
			"get":    c.Get(t.Context(), path+"/row", url.Values{"key": {"203.0.113.9"}}, &row),
			"delete": c.Delete(t.Context(), path+"/row", url.Values{"key": {"203.0.113.9"}}, &row),
			"set":    c.Post(t.Context(), path, []admin.RowWrite{{Key: "203.0.113.9"}}, &admin.Table{}),
		} {
			if err := failure(t, err); err.Status != http.StatusNotFound || !strings.Contains(err.Error(), "no table") || err.Hint == "" {
				t.Errorf("%s %s: %v", what, name, err)
			}
		}
	}
	if err := failure(t, c.Get(t.Context(), "/v1/tables/ip-blok", nil, &page)); err.Hint != `did you mean "ip-block"?` {
		t.Errorf("%q", err.Hint)
	}
	err := failure(t, c.Post(t.Context(), "/v1/tables/recipients", []admin.RowWrite{{Key: "a"}}, &admin.Table{}))
	if err.Status != http.StatusConflict || err.Hint == "" {
		t.Errorf("%v", err)
	}
}

func TestTrackAndFollow(t *testing.T) {
	h, c := serve(t)
	found := get[admin.Track](t, c, "/v1/track", url.Values{"event": {"REJECT"}, "limit": {"1"}})
	if len(found.Records) != 1 || !found.More || found.Records[0].Command != "MESSAGE" {
		t.Errorf("%+v", found)
	}
	found = get[admin.Track](t, c, "/v1/track", url.Values{"from": {"2031-05-06T12:00:00.1Z"}, "to": {"2031-05-06T12:00:00.2Z"}})
	if len(found.Records) != 2 {
		t.Errorf("%+v", found)
	}
	if err := c.Get(t.Context(), "/v1/track", url.Values{"from": {"yesterday"}}, &found); failure(t, err).Status != http.StatusBadRequest {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- c.Lines(ctx, http.MethodGet, "/v1/follow", url.Values{"event": {"POISON"}}, nil, func(line []byte) error {
			var r tracking.Record
			if err := json.Unmarshal(line, &r); err != nil {
				return err
			}
			seen <- r.Item
			return nil
		})
	}()
	for waiting := true; waiting; {
		h.Ledger.Write(&tracking.Record{Event: tracking.Poison, Item: "x"})
		select {
		case item := <-seen:
			waiting = item != "x"
		case <-ctx.Done():
			t.Fatal("no record was seen")
		case <-time.After(50 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhy(t *testing.T) {
	h, c := serve(t)
	story := get[tracking.Story](t, c, "/v1/why/06azv5q8e0bbbbbb.1", nil)
	if !strings.Contains(story.Summary, "put off for 1 recipient, delivered to 1 recipient") || len(story.Now) != 0 {
		t.Errorf("%+v", story)
	}
	h.Ledger.Write(&tracking.Record{Event: tracking.Receive, Message: "06azv5q8e0aaaaab.1"})
	story = get[tracking.Story](t, c, "/v1/why/06azv5q8e0aaaaab.1", nil)
	if len(story.Now) != 1 || !strings.Contains(story.Now[0], "waits for agent antivirus") {
		t.Errorf("%+v", story)
	}
	err := failure(t, c.Get(t.Context(), "/v1/why/06azv5q8e0cccccc", nil, &story))
	if err.Status != http.StatusNotFound || err.Hint == "" {
		t.Errorf("%v", err)
	}
}

func TestWhatTheHostDoesNotHave(t *testing.T) {
	_, c := serve(t)
	err := failure(t, c.Get(t.Context(), "/v9/everything", nil, &struct{}{}))
	if err.Status != http.StatusNotFound || !strings.Contains(err.Hint, "older") || c.Version() != "1.2.3" {
		t.Errorf("%v", err)
	}
}

func TestMetrics(t *testing.T) {
	h := admintest.New(t)
	h.Deps()
	caller := h.Metrics.Caller(caller{"contentfilter"})
	for range 3 {
		if _, err := caller.Call(t.Context(), &agent.Call{Kind: agentpb.EventKind_EVENT_KIND_RCPT}); err != nil {
			t.Fatal(err)
		}
	}
	recorder := httptest.NewRecorder()
	h.Metrics.Handler().ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	text := recorder.Body.String()
	for _, want := range []string{
		"postern_messages_received_total 1\n",
		`postern_refusals_total{command="RCPT"} 1` + "\n",
		`postern_recipients_total{result="deferred"} 1` + "\n",
		`postern_queue_items{state="ready"} 1` + "\n",
		`postern_queue_items{state="quarantined"} 2` + "\n",
		`postern_connections{connector="internet"} 3` + "\n",
		`postern_agent_ready{agent="contentfilter"} 1` + "\n",
		`postern_agent_ready{agent="antivirus"} 0` + "\n",
		`postern_agent_restarts_total{agent="contentfilter"} 5` + "\n",
		`postern_agent_dead_letters_total{agent="contentfilter"} 3` + "\n",
		`postern_agent_event_seconds_bucket{agent="contentfilter",event="OnRcpt",le="+Inf"} 3` + "\n",
		`postern_agent_event_seconds_count{agent="contentfilter",event="OnRcpt"} 3` + "\n",
		`postern_agent_verdicts_total{agent="contentfilter",event="OnRcpt",verdict="reject"} 3` + "\n",
		"postern_ledger_dropped_total 0\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	checkExposition(t, text)
}

// checkExposition looks at the form of every line: families are declared once and before their samples.
func checkExposition(t *testing.T, text string) {
	t.Helper()
	declared := map[string]bool{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if fields[0] == "#" {
			if fields[1] == "TYPE" {
				if declared[fields[2]] {
					t.Errorf("%s is declared twice", fields[2])
				}
				declared[fields[2]] = true
			}
			continue
		}
		name, _, _ := strings.Cut(fields[0], "{")
		family := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if !declared[name] && !declared[family] {
			t.Errorf("%s is not declared", name)
		}
	}
}

func TestEveryVerbIsOneOfAFewLabels(t *testing.T) {
	h := admintest.New(t)
	h.Deps()
	ledger := h.Metrics.Ledger(h.Ledger)
	for i := range 100 {
		ledger.Write(&tracking.Record{Event: tracking.Reject, Command: strings.Repeat("X", i+1)})
	}
	recorder := httptest.NewRecorder()
	h.Metrics.ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	if n := strings.Count(recorder.Body.String(), "postern_refusals_total{"); n != 3 { // RCPT, MESSAGE, other
		t.Errorf("%d series", n)
	}
}

func TestSocketIsOpenToItsOwnerOnly(t *testing.T) {
	folder := shortDir(t)
	server, err := admin.Serve(filepath.Join(folder, "s"), admintest.New(t).Deps())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if os.Getuid() != 0 {
		t.Log("run as root, this test also connects as another user")
		return
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(folder, "s"), 0o666); err != nil { // somebody has opened it
		t.Fatal(err)
	}
	status, body := askAs(t, 65534, filepath.Join(folder, "s"))
	if status != http.StatusForbidden || !strings.Contains(body, "user 65534 may not control this host") {
		t.Errorf("%d %s", status, body)
	}
}

package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// queryOf reads the parameters of /v1/track and /v1/follow.
func queryOf(r *http.Request) (tracking.Query, error) {
	limit, err := limitOf(r)
	if err != nil {
		return tracking.Query{}, err
	}
	q := tracking.Query{
		ID: r.FormValue("id"), Session: r.FormValue("session"), Message: r.FormValue("message"), Sender: r.FormValue("sender"),
		Recipient: r.FormValue("recipient"), Event: r.FormValue("event"), Agent: r.FormValue("agent"), Limit: limit,
	}
	for name, at := range map[string]*time.Time{"from": &q.From, "to": &q.To} {
		text := r.FormValue(name)
		if text == "" {
			continue
		}
		if *at, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return q, badRequest("%s: %v", name, err)
		}
	}
	return q, nil
}

func (a *api) track(r *http.Request) (any, error) {
	q, err := queryOf(r)
	if err != nil {
		return nil, err
	}
	records, more, err := a.Ledger.Search(r.Context(), q)
	if err != nil {
		return nil, err
	}
	return Track{Records: emptyForNil(records), More: more}, nil
}

// follow answers with a record a line as they are written, until the client goes.
func (a *api) follow(w http.ResponseWriter, r *http.Request) {
	q, err := queryOf(r)
	if err != nil {
		a.fail(w, err)
		return
	}
	lines := a.lines(w)
	err = a.Ledger.Follow(r.Context(), q, func(record tracking.Record) error { return lines(record) })
	if err != nil && r.Context().Err() == nil {
		a.Logger.Warn("following the ledger", "error", err)
	}
}

// lines starts an answer of JSON lines and answers with what writes one.
func (a *api) lines(w http.ResponseWriter) func(v any) error {
	w.Header().Set(VersionHeader, a.Info.Version)
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = control.Flush() // a client that has gone fails the first line
	return func(v any) error {
		return errors.Join(encoder.Encode(v), control.Flush())
	}
}

func (a *api) why(r *http.Request) (any, error) {
	id := r.PathValue("id")
	story, err := tracking.Tell(r.Context(), a.Ledger, id)
	if errors.Is(err, tracking.ErrNoStory) {
		return nil, &failure{http.StatusNotFound, Problem{Error: err.Error(),
			Hint: "ids stand at the end of the host's replies: [" + strings.Repeat("0", 16) + ".1]"}}
	}
	if err != nil {
		return nil, err
	}
	for _, e := range a.Queue.Entries(func(e queue.Entry) bool { return story.Covers(e.ID) || story.Covers(e.Message) }) {
		story.Now = append(story.Now, whereabouts(e))
	}
	return story, nil
}

// whereabouts says in words where an item is.
func whereabouts(e queue.Entry) string {
	text := e.ID + " for " + strconv.Itoa(e.Recipients) + " recipients "
	if e.Recipients == 1 {
		text = e.ID + " for 1 recipient "
	}
	switch e.State {
	case queue.Waiting:
		return text + "waits for agent " + e.WaitingFor
	case queue.Quarantined:
		return text + "is in quarantine" + because(e)
	case queue.Parked:
		return text + "is parked" + because(e)
	case queue.Suspended:
		return text + "is suspended by an operator"
	}
	if !e.Routed {
		return text + "waits for the categorizer"
	}
	text += "waits for " + e.Hop
	if e.LastError != "" {
		text += ", next attempt " + e.Next.UTC().Format(time.RFC3339) + ", last error: " + e.LastError
	}
	return text
}

func because(e queue.Entry) string {
	switch {
	case e.Agent != "" && e.Reason != "":
		return " by " + e.Agent + ": " + e.Reason
	case e.Agent != "":
		return " by " + e.Agent
	case e.Reason != "":
		return ": " + e.Reason
	}
	return ""
}

package admin

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// defaultLimit bounds listings where the request does not.
const defaultLimit = 1000

func (a *api) queue(r *http.Request) (any, error) {
	state, hop := r.FormValue("state"), r.FormValue("hop")
	if err := checkState(state); err != nil {
		return nil, err
	}
	return a.list(r, func(e queue.Entry) bool {
		return e.State != queue.Quarantined && (state == "" || e.State.String() == state) && (hop == "" || e.Hop == hop)
	})
}

func (a *api) quarantine(r *http.Request) (any, error) {
	return a.list(r, func(e queue.Entry) bool { return e.State == queue.Quarantined })
}

func checkState(name string) error {
	for s := queue.Ready; s < queue.Done; s++ {
		if name == "" || s.String() == name {
			return nil
		}
	}
	return badRequest("no state %q: it is ready, waiting, suspended, parked or quarantined", name)
}

func (a *api) list(r *http.Request, filter func(queue.Entry) bool) (any, error) {
	limit, err := limitOf(r)
	if err != nil {
		return nil, err
	}
	entries := a.Queue.Entries(filter)
	slices.SortFunc(entries, byAge)
	listing := Entries{Items: []Entry{}, Total: len(entries)}
	for _, e := range entries[:min(len(entries), limit)] {
		listing.Items = append(listing.Items, Entry{Entry: e, State: e.State.String()})
	}
	return listing, nil
}

// byAge orders entries oldest first.
func byAge(a, b queue.Entry) int {
	if c := a.Received.Compare(b.Received); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// limitOf is the parameter limit; 0 is no limit.
func limitOf(r *http.Request) (int, error) {
	text := r.FormValue("limit")
	if text == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, badRequest("limit %q is not a number", text)
	}
	if n == 0 {
		return int(^uint(0) >> 1), nil
	}
	return n, nil
}

func (a *api) item(r *http.Request) (any, error) {
	entry, item, err := a.load(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return describeItem(entry, item), nil
}

func (a *api) quarantinedItem(r *http.Request) (any, error) {
	entry, item, err := a.load(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if entry.State != queue.Quarantined {
		return nil, notFound("%s is not in quarantine but %s", entry.ID, entry.State)
	}
	return describeItem(entry, item), nil
}

// load finds an item by its id, or by the id of its message where that has only one item.
func (a *api) load(id string) (queue.Entry, *queue.Item, error) {
	found := a.Queue.Entries(func(e queue.Entry) bool { return e.ID == id || e.Message == id })
	if i := slices.IndexFunc(found, func(e queue.Entry) bool { return e.ID == id }); i >= 0 {
		found = found[i : i+1]
	}
	switch len(found) {
	case 0:
		return queue.Entry{}, nil, &failure{http.StatusNotFound, Problem{Error: "no item " + id,
			Hint: "it may be delivered or gone: postern why " + id}}
	case 1:
		item, err := a.Queue.Load(found[0].ID)
		return found[0], item, err
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, e.ID)
	}
	return queue.Entry{}, nil, badRequest("message %s has %d items: %s", id, len(found), strings.Join(ids, ", "))
}

func describeItem(e queue.Entry, item *queue.Item) Item {
	i := Item{
		Entry: Entry{Entry: e, State: e.State.String()}, Parent: item.Parent, Origin: item.Origin,
		Session: item.Session.ID, Connector: item.Session.Connector, Helo: item.Session.Helo, Trust: item.Session.Trust.String(),
		Missed: item.Missed, DoneAgents: item.DoneAgents, Evidence: item.Evidence, Envelope: []Recipient{},
	}
	if item.Session.Client.IsValid() {
		i.Client = item.Session.Client.String()
	}
	if item.Mail == nil {
		return i
	}
	i.Traffic = item.Mail.Traffic.String()
	i.Subject, i.MessageID = headerField(item.Mail.Header, "Subject"), headerField(item.Mail.Header, "Message-Id")
	i.Stamps = stampTexts(item.Mail.Stamps)
	for _, r := range item.Mail.Recipients {
		i.Envelope = append(i.Envelope, describeRecipient(r))
	}
	return i
}

func describeRecipient(r *envelope.Recipient) Recipient {
	d := Recipient{
		Address: r.Address.String(), State: recipientStates[r.State], Remote: r.Remote, Original: r.Original,
		ExpandedFrom: r.ExpandedFrom, Stamps: stampTexts(r.Stamps),
	}
	if !r.Reply.IsZero() {
		d.Reply = r.Reply.String()
	}
	return d
}

var recipientStates = [...]string{
	envelope.Pending: "pending", envelope.Delivered: "delivered", envelope.Relayed: "relayed", envelope.Failed: "failed",
	envelope.Discarded: "discarded",
}

func stampTexts(stamps envelope.Stamps) map[string]string {
	if len(stamps) == 0 {
		return nil
	}
	texts := make(map[string]string, len(stamps))
	for name, value := range stamps {
		texts[name] = string(value)
	}
	return texts
}

// headerField is the first field of that name, unfolded; "" without.
func headerField(header []byte, name string) string {
	for line := range bytes.SplitSeq(unfold(header), []byte("\r\n")) {
		field, value, found := bytes.Cut(line, []byte(":"))
		if found && textproto.CanonicalMIMEHeaderKey(string(bytes.TrimSpace(field))) == name {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// unfold joins continuation lines (RFC 5322 section 2.2.3).
func unfold(header []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(header, []byte("\r\n "), []byte(" ")), []byte("\r\n\t"), []byte(" "))
}

// raw answers with the message as it would be delivered now.
func (a *api) raw(w http.ResponseWriter, r *http.Request) {
	_, item, err := a.load(r.PathValue("id"))
	if err != nil {
		a.fail(w, err)
		return
	}
	if item.Mail == nil {
		a.fail(w, notFound("item %s has no content that can be read", item.ID))
		return
	}
	w.Header().Set(VersionHeader, a.Info.Version)
	w.Header().Set("Content-Type", "message/rfc822")
	parts := []io.Reader{bytes.NewReader(item.Prefix), bytes.NewReader(item.Mail.Header), strings.NewReader("\r\n")}
	if item.Mail.Body != nil {
		parts = append(parts, item.Mail.Body.Reader())
	}
	_, _ = io.Copy(w, io.MultiReader(parts...)) // fails when whoever asked has gone
}

func (a *api) retry(r *http.Request) (any, error) {
	return a.each(r, notQuarantined, func(e queue.Entry) error { return a.Queue.Retry(e.ID) })
}

func (a *api) suspend(r *http.Request) (any, error) {
	return a.each(r, notQuarantined, func(e queue.Entry) error { return a.Queue.Suspend(e.ID) })
}

func (a *api) resume(r *http.Request) (any, error) {
	return a.each(r, notQuarantined, func(e queue.Entry) error { return a.Queue.Resume(e.ID) })
}

func (a *api) remove(r *http.Request) (any, error) {
	return a.each(r, notQuarantined, func(e queue.Entry) error {
		return a.recorded(e, tracking.Drop, "removed by "+by(r), a.Queue.Remove)
	})
}

func (a *api) release(r *http.Request) (any, error) {
	return a.each(r, isQuarantined, func(e queue.Entry) error {
		return a.recorded(e, tracking.Release, "released by "+by(r), a.Queue.Release)
	})
}

func (a *api) deleteQuarantined(r *http.Request) (any, error) {
	return a.each(r, isQuarantined, func(e queue.Entry) error {
		return a.recorded(e, tracking.Drop, "deleted from quarantine by "+by(r), a.Queue.Remove)
	})
}

func isQuarantined(e queue.Entry) bool  { return e.State == queue.Quarantined }
func notQuarantined(e queue.Entry) bool { return e.State != queue.Quarantined }

// each does an operation to every item of the Selection in the request and says for each whether it was done.
func (a *api) each(r *http.Request, may func(queue.Entry) bool, do func(queue.Entry) error) (any, error) {
	var s Selection
	if err := readJSON(r, &s); err != nil {
		return nil, err
	}
	if len(s.IDs) == 0 && s.Hop == "" && s.State == "" && !s.All {
		return nil, badRequest("no item is named")
	}
	if err := checkState(s.State); err != nil {
		return nil, err
	}
	changed := Changed{Done: []string{}, Failed: map[string]string{}}
	selected := a.selected(s, may, &changed)
	slices.SortFunc(selected, byAge)
	for _, e := range selected {
		if !may(e) {
			changed.Failed[e.ID] = "it is " + e.State.String()
			continue
		}
		if err := do(e); err != nil {
			changed.Failed[e.ID] = err.Error()
			continue
		}
		changed.Done = append(changed.Done, e.ID)
	}
	return changed, nil
}

// selected finds the items. A message's id selects all its items; one without items is noted as failed.
func (a *api) selected(s Selection, may func(queue.Entry) bool, changed *Changed) []queue.Entry {
	if len(s.IDs) == 0 {
		return a.Queue.Entries(func(e queue.Entry) bool {
			return may(e) && (s.Hop == "" || e.Hop == s.Hop) && (s.State == "" || e.State.String() == s.State)
		})
	}
	found := a.Queue.Entries(func(e queue.Entry) bool { return slices.Contains(s.IDs, e.ID) || slices.Contains(s.IDs, e.Message) })
	for _, id := range s.IDs {
		if !slices.ContainsFunc(found, func(e queue.Entry) bool { return e.ID == id || e.Message == id }) {
			changed.Failed[id] = "no such item"
		}
	}
	return found
}

// recorded does an operation and tells the ledger. The item is read before: afterwards it is gone.
func (a *api) recorded(e queue.Entry, event, reason string, do func(id string) error) error {
	record := tracking.Record{Event: event, Item: e.ID, Message: e.Message, Sender: &e.Sender, Size: e.Size, Reason: reason}
	// A parked item may be unreadable, which must not keep an operator from removing it.
	if item, err := a.Queue.Load(e.ID); err == nil && item.Mail != nil {
		record.Session = item.Session.ID
		record.Subject, record.MessageID = headerField(item.Mail.Header, "Subject"), headerField(item.Mail.Header, "Message-Id")
		for _, r := range item.Mail.Recipients {
			record.Recipients = append(record.Recipients, tracking.Recipient{Address: r.Address.String()})
		}
	}
	if err := do(e.ID); err != nil {
		return fmt.Errorf("%s: %w", e.ID, err)
	}
	a.Ledger.Write(&record)
	return nil
}

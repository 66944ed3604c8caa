package tracking

import (
	"context"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Story is what became of a session, a message or an item.
type Story struct {
	ID      string   `json:"id"`
	Summary string   `json:"summary"`
	Scenes  []Scene  `json:"steps"` // in the order of time
	Now     []string `json:"now"`   // what is still kept, and what it waits for
	base    string
}

// Scene is one step of a Story.
type Scene struct {
	Time    time.Time `json:"time"`
	Who     string    `json:"who"`             // "client", "host", or an agent with its version
	Event   string    `json:"event,omitempty"` // of an agent: OnRcpt; of the ledger: RECEIVE
	Text    string    `json:"text"`
	Details []string  `json:"details,omitempty"`
	Micros  int64     `json:"micros,omitempty"` // an agent took
	Item    string    `json:"item,omitempty"`
}

// Searcher finds records. *File implements it, and Folder.
type Searcher interface {
	Search(ctx context.Context, q Query) (records []Record, more bool, err error)
}

// Folder is the ledger in a folder that some host writes, or that none writes any more.
type Folder string

// Search implements Searcher.
func (f Folder) Search(ctx context.Context, q Query) (records []Record, more bool, err error) {
	return Search(ctx, string(f), q)
}

// ErrNoStory is returned for an id that the ledger does not know.
var ErrNoStory = errors.New("the ledger knows nothing about it")

// storyLimit bounds the records of a story; a session may have thousands of messages.
const storyLimit = 2000

// Tell finds everything about the session, message or item id (or the Message-ID field, in angle brackets) and
// tells it in words.
func Tell(ctx context.Context, s Searcher, id string) (*Story, error) {
	q := Query{ID: id, Limit: storyLimit}
	if at, ok := timeOfID(id); ok {
		q.From = at.Add(-time.Hour) // clocks are set back sometimes
	}
	records, more, err := s.Search(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s: %w", id, ErrNoStory)
	}
	// Of a message only the session's own lines are missing: they do not name it.
	if session := sessionOf(records); session != "" && !belongs(session, baseOf(id)) {
		records, err = withSession(ctx, s, records, session, q.From)
		if err != nil {
			return nil, err
		}
	}
	story := write(id, records)
	if more {
		story.Scenes = append([]Scene{{Time: records[0].Time, Who: "host", Text: "(earlier records are left out)"}}, story.Scenes...)
	}
	return story, nil
}

// Covers reports whether id names what the story is about, or something that came of it.
func (s *Story) Covers(id string) bool { return belongs(id, s.base) }

// withSession adds the end of the session and what was refused in it, but nothing about its other messages.
func withSession(ctx context.Context, s Searcher, records []Record, session string, from time.Time) ([]Record, error) {
	all, _, err := s.Search(ctx, Query{Session: session, From: from, Limit: storyLimit})
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Message == "" {
			records = append(records, r)
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int { return a.Time.Compare(b.Time) })
	return records, nil
}

func sessionOf(records []Record) string {
	for _, r := range records {
		if r.Session != "" {
			return r.Session
		}
	}
	return ""
}

// write makes the story of records.
func write(id string, records []Record) *Story {
	base := baseOf(id)
	if strings.HasPrefix(base, "<") {
		base = messageOf(records, base)
	}
	s := &Story{ID: id, Summary: summary(base, records), Now: []string{}, base: base}
	s.Scenes = arrival(records)
	at := records[0].Time
	if len(s.Scenes) > 0 {
		at = s.Scenes[0].Time
	}
	for i := range records {
		opening, rest := records[i].opening(at)
		s.Scenes = append(s.Scenes, opening...)
		records[i].Verdicts = rest
	}
	for i := range records {
		s.Scenes = append(s.Scenes, records[i].Scenes()...)
	}
	return s
}

// openingEvents come before a first message. The ledger has what agents said at them in the last record, that of
// the session.
var openingEvents = []string{"OnConnect", "OnHelo", "OnEhlo", "OnStartTls", "OnAuth", "OnEndOfAuthentication"}

// opening takes the scenes of openingEvents out of the record of a session.
func (r *Record) opening(at time.Time) (scenes []Scene, rest []Verdict) {
	if r.Event != Session {
		return nil, r.Verdicts
	}
	for i := range r.Verdicts {
		v := &r.Verdicts[i]
		if !slices.Contains(openingEvents, v.Event) {
			rest = append(rest, *v)
			continue
		}
		scene := v.scene(r)
		scene.Time = at
		scenes = append(scenes, scene)
	}
	return scenes, rest
}

func messageOf(records []Record, messageID string) string {
	for _, r := range records {
		if r.MessageID == messageID && r.Message != "" {
			return r.Message
		}
	}
	return messageID
}

// longestSession bounds what is believed of the time in an id.
const longestSession = 24 * time.Hour

// arrival says who connected. The ledger has no line for it: every line of the session repeats it.
func arrival(records []Record) []Scene {
	for i := range records {
		r := &records[i]
		if r.Client == "" {
			continue
		}
		at := r.Time
		if t, ok := timeOfID(r.Session); ok && t.Before(at) && at.Sub(t) < longestSession {
			at = t
		}
		scene := Scene{Time: at, Who: "client", Text: r.Client + " connected to " + r.Connector}
		if r.Trust != "" {
			scene.Text += " as " + strings.ReplaceAll(r.Trust, "_", " ")
		}
		scene.Details = arrivalDetails(records)
		return []Scene{scene}
	}
	return nil
}

// arrivalDetails takes the last word of the session: the greeting and TLS come after the first line.
func arrivalDetails(records []Record) []string {
	var helo, tls, identity string
	for i := range records {
		if r := &records[i]; r.Client != "" {
			helo, tls, identity = last(helo, r.Helo), last(tls, r.TLS), last(identity, r.Identity)
		}
	}
	var details []string
	for _, d := range []struct{ name, value string }{{"greeted as ", helo}, {"encrypted with ", tls}, {"authenticated as ", identity}} {
		if d.value != "" {
			details = append(details, d.name+d.value)
		}
	}
	return details
}

func last(a, b string) string {
	if b == "" {
		return a
	}
	return b
}

// Scenes of one record: what each agent said, then what came of it.
func (r *Record) Scenes() []Scene {
	var scenes []Scene
	for i := range r.Verdicts {
		scenes = append(scenes, r.Verdicts[i].scene(r))
	}
	scene := Scene{Time: r.Time, Who: "host", Event: r.Event, Text: r.text(), Item: r.Item}
	scene.Details = r.details()
	return append(scenes, scene)
}

// text says what r is about, in a line.
func (r *Record) text() string {
	switch r.Event {
	case Session:
		return sessionText(r.Counts)
	case Receive:
		return "accepted" + r.what()
	case Reject:
		return "refused " + refusedWhat(r.Command) + r.by()
	case Categorize:
		return "routed" + r.to(" to ", r.Remote)
	case Send:
		return "delivered" + r.to(" to ", r.Remote) + r.to(" through ", r.Connector)
	case Defer:
		return "put off" + r.until() + r.to(", next hop ", r.Remote) + r.by()
	case Fail:
		return "failed for good" + r.to(", next hop ", r.Remote) + r.by()
	case DSN:
		return "made a notification" + r.from()
	case Drop:
		return "dropped" + r.by()
	case Quarantine:
		if r.Beside() {
			return "kept a copy in quarantine" + r.by()
		}
		return "kept in quarantine" + r.by()
	case Release:
		return "released from quarantine" + r.by()
	case Poison:
		return "parked: it cannot be processed" + r.by()
	case Spawn:
		return "made a new message" + r.by()
	}
	return strings.ToLower(r.Event)
}

func refusedWhat(command string) string {
	switch command {
	case "", "MESSAGE":
		return "the message"
	case "CONNECT":
		return "the connection"
	}
	return command
}

func (r *Record) to(word, what string) string {
	if what == "" {
		return ""
	}
	return word + what
}

func (r *Record) what() string {
	text := r.from()
	if r.Size > 0 {
		text += ", " + Size(r.Size)
	}
	return text
}

func (r *Record) from() string {
	text := ""
	if r.Sender != nil {
		text = " from <" + *r.Sender + ">"
	}
	if len(r.Recipients) > 0 {
		text += " to " + addresses(r.Recipients)
	}
	return text
}

// addresses lists the first few.
func addresses(recipients []Recipient) string {
	const most = 3
	var list []string
	for _, to := range recipients[:min(len(recipients), most)] {
		list = append(list, "<"+to.Address+">")
	}
	text := strings.Join(list, ", ")
	if n := len(recipients) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

func (r *Record) until() string {
	if r.Next == nil {
		return ""
	}
	return " until " + r.Next.UTC().Format("2006-01-02 15:04:05 UTC")
}

// by says who decided it, where, and why.
func (r *Record) by() string {
	text := ""
	if r.Agent != "" {
		text = " by " + strings.TrimSpace(r.Agent+" "+r.Version)
		if r.AgentEvent != "" {
			text += " at " + r.AgentEvent
		}
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

func sessionText(c *Counts) string {
	if c == nil {
		return "session ended"
	}
	return fmt.Sprintf("session ended (%s) after %s: %s, %s, %s", c.End, (time.Duration(c.Millis) * time.Millisecond).String(),
		count(c.Commands, "command"), count(c.Messages, "message"), count(c.Rejects, "refusal"))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// details are the lines below the text of a record.
func (r *Record) details() []string {
	var d []string
	if r.Event == Receive {
		d = appendDetail(d, "subject: ", r.Subject)
		d = appendDetail(d, "Message-ID: ", r.MessageID)
	}
	if r.Event == Receive || r.Event == Reject {
		d = appendDetail(d, "the client was told: ", r.Reply)
	} else {
		d = appendDetail(d, "reply: ", r.Reply)
	}
	if r.Event == Send {
		d = appendDetail(d, "encrypted with ", r.TLS)
	}
	if r.Attempt > 1 {
		d = append(d, fmt.Sprintf("attempt %d", r.Attempt))
	}
	if r.Event == Receive {
		return d
	}
	for _, to := range r.Recipients {
		if to.Status != "" || to.Reply != "" || r.Event == Reject {
			d = append(d, strings.TrimRight(strings.TrimSpace("<"+to.Address+"> "+to.Status)+" "+to.Reply, " "))
		}
	}
	return d
}

func appendDetail(d []string, name, value string) []string {
	if value == "" {
		return d
	}
	return append(d, name+value)
}

func (v *Verdict) scene(r *Record) Scene {
	s := Scene{Time: r.Time, Who: strings.TrimSpace(v.Agent + " " + v.Version), Event: v.Event, Text: v.text(), Micros: v.Micros}
	s.Details = appendDetail(s.Details, "reply: ", v.Reply)
	s.Details = appendDetail(s.Details, "failure: ", v.Failure)
	if v.Attempt > 1 {
		s.Details = append(s.Details, fmt.Sprintf("attempt %d", v.Attempt))
	}
	if len(v.Recipients) > 0 {
		s.Details = append(s.Details, "for "+strings.Join(v.Recipients, ", "))
	}
	s.Details = append(s.Details, v.Edits...)
	for _, stamp := range v.Stamps {
		s.Details = append(s.Details, "stamp "+stamp)
	}
	return s
}

func (v *Verdict) text() string {
	words, known := map[string]string{
		"continue": "no objection", "done": "no objection, no further questions", "reject": "reject", "defer": "put it off",
		"disconnect": "disconnect", "discard": "discard it silently", "quarantine": "put it in quarantine",
		"tarpit": "slow the client down", "bypass": "let others be bypassed", "fail": "fail it", "undetermined": "cannot judge",
		"skipped": "skipped", "not-needed": "not needed: an agent before it had decided", "failed": "failed to answer",
	}[v.Verdict]
	if !known {
		words = v.Verdict
	}
	if v.Reason != "" {
		words += ": " + v.Reason
	}
	if v.Data != "" {
		words += " (" + v.Data + ")"
	}
	return words
}

// summary says in one sentence how it ended.
func summary(base string, records []Record) string {
	if sessionOf(records) == base {
		return sessionSummary(base, records)
	}
	return "Message " + base + envelopeOf(base, records) + ": " + ending(base, records) + "."
}

// envelopeOf is from whom to whom: as accepted, or else as first refused.
func envelopeOf(base string, records []Record) string {
	for _, accepted := range []bool{true, false} {
		for i := range records {
			if r := &records[i]; r.Message == base && r.Sender != nil && (r.Event == Receive || !accepted) {
				return r.from()
			}
		}
	}
	return ""
}

func sessionSummary(id string, records []Record) string {
	messages, refusals, client := 0, 0, ""
	for _, r := range records {
		client = last(client, r.Client)
		switch r.Event {
		case Receive:
			messages++
		case Reject:
			refusals++
		}
	}
	text := "Session " + id
	if client != "" {
		text += " from " + client
	}
	return text + ": " + count(messages, "message") + " accepted, " + count(refusals, "refusal") + "."
}

// endings are the words for what can become of recipients, the ones an operator looks for first.
var endings = [...]struct{ event, words string }{
	{Poison, "parked for"}, {Fail, "failed for"}, {Quarantine, "quarantined for"}, {Defer, "put off for"}, {Drop, "dropped for"},
	{Send, "delivered to"},
}

// ending counts recipients by the last that is known about them.
func ending(base string, records []Record) string {
	lastEvent := map[string]string{}
	accepted, refused := false, false
	beside := map[string]bool{} // items that are copies kept beside the delivery
	for _, r := range records {
		switch {
		case r.Beside():
			beside[r.Item] = true
		case beside[r.Item] && (r.Event == Drop || r.Event == Release):
		case r.Event == Receive:
			accepted = true
		case r.Event == Reject && belongs(r.Message, base):
			refused = true
		case r.Event == Release:
			noteRecipients(lastEvent, r, "")
		case slices.ContainsFunc(endings[:], func(e struct{ event, words string }) bool { return e.event == r.Event }):
			noteRecipients(lastEvent, r, r.Event)
		}
	}
	var parts []string
	for _, e := range endings {
		n := 0
		for _, event := range lastEvent {
			if event == e.event {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, e.words+" "+count(n, "recipient"))
		}
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, ", ")
	case accepted:
		return "accepted"
	case refused:
		return "refused"
	}
	return "no result yet"
}

// noteRecipients notes what has happened to r's recipients. Who has the message or never will is not told of anew when an
// operator deletes or releases a copy that was kept in quarantine beside it.
func noteRecipients(lastEvent map[string]string, r Record, event string) {
	note := func(key string) {
		final := lastEvent[key] == Send || lastEvent[key] == Fail
		if final && (r.Event == Drop || r.Event == Release) {
			return
		}
		lastEvent[key] = event
	}
	for _, to := range r.Recipients {
		note(strings.ToLower(to.Address))
	}
	if len(r.Recipients) == 0 {
		note(r.Item)
	}
}

// Size writes a number of bytes for people: "4.1 KB". Powers of 1000, as disks and mail limits count.
func Size(n int64) string {
	const units = "kMGT"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	size, unit := float64(n)/1000, 0
	for size >= 999.95 && unit < len(units)-1 {
		size, unit = size/1000, unit+1
	}
	return fmt.Sprintf("%.1f %cB", size, units[unit])
}

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// timeOfID reads the time that the ids of sessions and messages begin with, see queue.NewID.
func timeOfID(id string) (time.Time, bool) {
	session, _, _ := strings.Cut(baseOf(id), ".")
	raw, err := idEncoding.DecodeString(session)
	if err != nil || len(raw) != 10 {
		return time.Time{}, false
	}
	var ms [8]byte
	copy(ms[2:], raw[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC(), true
}

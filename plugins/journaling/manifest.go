package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// OnSchedule sends a manifest to each journal mailbox that got reports since the last one. A set that is in a
// manifest and not in the archive is missing as a whole, which its own reports could not tell; and a manifest names
// the one before it, so that it cannot be missing unseen.
func (j *Journal) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	lines := map[string][]string{} // by journal mailbox
	if e.Page > 0 || e.More {
		for _, r := range j.rules { // a page for each, or one that is missing would not be known from one that never was
			lines[r.mailbox.String()] = nil
		}
	}
	v := sdk.Continue()
	for row := range j.sets.Rows(e) {
		s := row.Value
		lines[s.Mailbox] = append(lines[s.Mailbox], fmt.Sprintf("%s %d %s\r\n", row.Key, s.Parts, s.Message))
		v = v.Write(j.sets.Delete().At(row.Key))
	}
	before := map[string]turnRow{}
	for row := range j.manifested.Rows(e) {
		before[row.Key] = row.Value
	}
	for _, m := range slices.Sorted(maps.Keys(lines)) {
		mailbox, err := address.Parse(m)
		if err != nil {
			continue // it was one when the set was made
		}
		page := pageOf(e, before[mailbox.Key()])
		if e.Page == 0 {
			v = v.Write(j.manifested.Put(turnRow{Turn: page.turn, After: page.after}, 0).At(mailbox.Key()))
		}
		v = v.Spawn(j.manifest(e, mailbox, page, lines[m])).Count("manifests", 1)
	}
	return v
}

// page of the manifest of one turn of the schedule.
type page struct {
	turn   string // the time of the turn before it, in a form that sorts
	number int    // from 1
	more   bool
	after  string // turn of the manifest before this one, in the first page; "" where there was none
}

// pageOf a turn. One that a crash has cut off is made again, and before is of the turn itself then.
func pageOf(e *sdk.ScheduleEvent, before turnRow) page {
	p := page{turn: firstTurn, number: e.Page + 1, more: e.More, after: before.Turn}
	if !e.Last.IsZero() {
		p.turn = e.Last.UTC().Format("20060102T150405.000000000Z")
	}
	if before.Turn == p.turn {
		p.after = before.After
	}
	if e.Page > 0 {
		p.after = ""
	}
	return p
}

// firstTurn had none before it.
const firstTurn = "0"

func (p page) String() string {
	s := fmt.Sprintf("%s; page=%d; more=%t", p.turn, p.number, p.more)
	if p.after != "" {
		s += "; after=" + p.after
	}
	return s
}

// parsePage reads what String has written.
func parsePage(text string) (p page, err error) {
	words := strings.Split(text, "; ")
	p.turn = words[0]
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "page":
			p.number, err = strconv.Atoi(value)
		case "more":
			p.more, err = strconv.ParseBool(value)
		case "after":
			p.after = value
		}
		if err != nil {
			return p, err
		}
	}
	if p.turn == "" || p.number < 1 || p.number > maxPages {
		return p, errors.New("no turn or no page")
	}
	return p, nil
}

// maxPages is more than maxSets fill.
const maxPages = maxSets / 100

// manifest of the sets in lines: "set parts message".
func (j *Journal) manifest(e *sdk.ScheduleEvent, to address.Mailbox, p page, lines []string) sdk.Spawn {
	slices.Sort(lines)
	text := strings.Join(lines, "")
	id := hexSum(fmt.Appendf(nil, "%s\n%s\n%s", p, to.Key(), text))[:32]
	var b bytes.Buffer
	j.common(&b, to, e.Time, id)
	field(&b, "Subject", fmt.Sprintf("Journal manifest: %d sets", len(lines)))
	field(&b, "Content-Type", "text/plain; charset=us-ascii")
	field(&b, manifestField, id)
	field(&b, turnField, p.String())
	field(&b, digestsField, "body="+hexSum([]byte(text)))
	if j.Key != "" {
		field(&b, sealField, seal(j.Key, id, p.String(), "body="+hexSum([]byte(text))))
	}
	b.WriteString("\r\n" + text)
	return sdk.Spawn{Recipients: []address.Mailbox{to}, Before: b.Bytes(), Durable: true}
}

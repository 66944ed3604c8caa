package main

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// profile is a row of the host's table reputation: what a source did. Other agents count in it too.
type profile struct {
	Low        int64 `json:"low"`        // messages with an SCL below spam_scl
	High       int64 `json:"high"`       // messages with one from there on
	Other      int64 `json:"other"`      // messages without
	Rejected   int64 `json:"rejected"`   // of these messages
	Refused    int64 `json:"refused"`    // commands
	Sessions   int64 `json:"sessions"`   // that are over
	EarlyTalk  int64 `json:"early_talk"` // of these sessions, likewise those below
	Pipelining int64 `json:"pipelining"`
	Literal    int64 `json:"literal"`
	OwnDomain  int64 `json:"own_domain"`
	NoReverse  int64 `json:"no_reverse_dns"`
	Misnamed   int64 `json:"reverse_mismatch"`
	Harvests   int64 `json:"harvests"` // counted by recipientfilter
}

// field of a profile by the name of its struct field.
func (p *profile) field(name string) *int64 {
	switch name {
	case "Low":
		return &p.Low
	case "High":
		return &p.High
	case "Rejected":
		return &p.Rejected
	case "Refused":
		return &p.Refused
	case "Sessions":
		return &p.Sessions
	case "EarlyTalk":
		return &p.EarlyTalk
	case "Pipelining":
		return &p.Pipelining
	case "Literal":
		return &p.Literal
	case "OwnDomain":
		return &p.OwnDomain
	case "NoReverse":
		return &p.NoReverse
	case "Misnamed":
		return &p.Misnamed
	case "Harvests":
		return &p.Harvests
	}
	return &p.Other
}

// profileFields are the names that field knows.
var profileFields = [...]string{"Low", "High", "Other", "Rejected", "Refused", "Sessions", "EarlyTalk", "Pipelining", "Literal",
	"OwnDomain", "NoReverse", "Misnamed", "Harvests"}

func (p *profile) messages() int64 { return p.Low + p.High + p.Other }

// attempts are what a source is rated by.
func (p *profile) attempts() int64 { return p.messages() + p.Refused }

// recent is a row of the table recent: what a source did in the window that began with the row. Under "high" unwanted
// messages, under "helo " and a name how often the row came to it (once).
type recent map[string]int64

const (
	recentHigh = "high"
	heloPrefix = "helo "
	maxNames   = 32 // that are kept: more change nothing
	maxName    = 60 // octets of each
)

// nameKey is the key of a name that a client gave itself.
func nameKey(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < '!' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, strings.ToLower(name))
	return heloPrefix + name[:min(len(name), maxName)]
}

// names is how many the source gave itself.
func (r recent) names() (n int) {
	for key := range r {
		if strings.HasPrefix(key, heloPrefix) {
			n++
		}
	}
	return n
}

// sourceState is what is known of a source, this event included.
type sourceState struct {
	ip         netip.Addr
	key        string // in the tables
	profileRow sdk.Row[profile]
	recentRow  sdk.Row[recent]
	proxyRow   sdk.Row[proxyRow]
	probed     bool
	feed       int // level that a feed gives it, 1 to 9; 0: none
}

// factor is one input of the formula.
type factor struct {
	name   string
	points float64
	seen   string
}

// rating of a source.
type rating struct {
	level   int
	rated   bool
	minimum int
	seen    int64 // messages and refusals
	factors []factor
}

// String explains the level.
func (r rating) String() string {
	if !r.rated {
		return fmt.Sprintf("%d of %d messages and refusals", r.seen, r.minimum)
	}
	var parts []string
	for _, f := range r.factors {
		parts = append(parts, f.name+" "+strconv.FormatFloat(f.points, 'f', 1, 64)+" ("+f.seen+")")
	}
	if parts == nil {
		parts = []string{"nothing against it"}
	}
	return fmt.Sprintf("SRL %d of %d messages and refusals: %s", r.level, r.seen, strings.Join(parts, ", "))
}

// full counts: so many of them are the worst.
const (
	fullRecent   = 20
	fullHarvests = 2
	freeNames    = 2
	fullNames    = 10
)

// rate a source by the formula of the README: the sum of each input's weight times how bad it is, from 0 to 1, rounded, and
// kept between 0 and 9. A session that goes on counts like one that is over; nil is none.
func (a *Analysis) rate(s sourceState, session *sdk.Session) rating {
	p := s.profileRow.Value
	if session != nil {
		p.Sessions++
		for _, field := range a.oddities(session) {
			*p.field(field)++
		}
	}
	r := rating{seen: p.attempts(), minimum: a.MinMessages}
	if r.rated = r.seen >= int64(a.MinMessages) || s.feed > 0; !r.rated {
		return r
	}
	r.factors = a.factors(p, s.recentRow.Value, s.proxyRow.Value.Open)
	if s.feed > 0 {
		r.factors = append(r.factors, factor{"feed", a.WeightFeed * float64(s.feed) / worstFeed, fmt.Sprintf("level %d", s.feed)})
	}
	sum := 0.0
	for _, f := range r.factors {
		sum += f.points
	}
	r.level = int(math.Round(min(max(sum, 0), 9)))
	return r
}

// factors are the inputs that count, in the order of the README.
func (a *Analysis) factors(p profile, recent recent, proxy string) (list []factor) {
	add := func(name string, weight, x float64, seen string) {
		if points := weight * min(x, 1); points != 0 {
			list = append(list, factor{name, points, seen})
		}
	}
	share := func(name string, weight float64, n, of int64) {
		if of > 0 {
			add(name, weight, float64(n)/float64(of), fmt.Sprintf("%d of %d", n, of))
		}
	}
	count := func(name string, weight float64, n, free, full int64) {
		if n > free {
			add(name, weight, float64(n-free)/float64(full-free), strconv.FormatInt(n, 10))
		}
	}
	share("spam", a.WeightSpam, p.High, p.High+p.Low)
	count("recent_spam", a.WeightRecentSpam, recent[recentHigh], 0, fullRecent)
	share("rejects", a.WeightRejects, p.Rejected+p.Refused, p.attempts())
	count("harvests", a.WeightHarvests, p.Harvests, 0, fullHarvests)
	count("helo", a.WeightHelo, int64(recent.names()), freeNames, fullNames)
	share("literal", a.WeightLiteral, p.Literal, p.Sessions)
	share("own_domain", a.WeightOwnDomain, p.OwnDomain, p.Sessions)
	share("no_reverse_dns", a.WeightNoReverse, p.NoReverse, p.Sessions)
	share("reverse_mismatch", a.WeightMisnamed, p.Misnamed, p.Sessions)
	share("early_talk", a.WeightEarlyTalk, p.EarlyTalk, p.Sessions)
	share("pipelining", a.WeightPipelining, p.Pipelining, p.Sessions)
	if proxy != "" {
		add("open_proxy", a.WeightOpenProxies, 1, proxy)
	}
	share("good_mail", -a.WeightGoodMail, p.Low, p.High+p.Low)
	return list
}

// source that an event is about, whose rows came with it.
func (a *Analysis) source(e sdk.Subject, key string) sourceState {
	s := sourceState{ip: e.Common().Session.Client.Addr, key: key, feed: feedLevel(e)}
	s.profileRow, _ = a.reputation.Row(e)
	s.recentRow, _ = a.recent.Row(e)
	s.proxyRow, s.probed = a.proxies.Row(e)
	return s
}

// worstFeed is the level of the worst sources in a feed.
const worstFeed = 9

// feedLevel is what a feed gives the source of an event; 0 where it gives nothing, or is not read.
func feedLevel(e sdk.Subject) int {
	level, err := strconv.Atoi(e.Common().Stamp(stampFeed))
	if err != nil || level < 0 || level > worstFeed {
		return 0
	}
	return level
}

// kindOf a message by its SCL: the field of the profile that it is counted in.
func (a *Analysis) kindOf(scl string) string {
	n, err := strconv.Atoi(scl)
	switch {
	case err != nil:
		return "Other"
	case n >= a.SpamSCL:
		return "High"
	}
	return "Low"
}

// count a message, in s and by the writes.
func (a *Analysis) count(s *sourceState, kind string, now time.Time) []sdk.Write {
	writes := []sdk.Write{a.add(s, kind)}
	if kind != "High" {
		return writes
	}
	value := recent{recentHigh: s.recentRow.Value[recentHigh] + 1}
	for key, n := range s.recentRow.Value {
		if key != recentHigh {
			value[key] = n
		}
	}
	s.recentRow.Value = value
	return append(writes, a.recent.Add(recentHigh, 1, a.left(now, s.recentRow.Created)).At(s.key))
}

// add one to a field of the profile, in s and by the write.
func (a *Analysis) add(s *sourceState, field string) sdk.Write {
	*s.profileRow.Value.field(field)++
	return a.reputation.Add(field, 1, a.Keep).At(s.key)
}

// halve the counts of a row. When it leaves does not change.
func (a *Analysis) halve(row sdk.Row[profile], now time.Time) (writes []sdk.Write) {
	keep := time.Duration(0) // for ever
	if !row.Expires.IsZero() {
		keep = max(row.Expires.Sub(now), time.Second)
	}
	for _, name := range profileFields {
		if n := *row.Value.field(name); n > 0 {
			writes = append(writes, a.reputation.Add(name, n/2-n, keep).At(row.Key))
		}
	}
	return writes
}

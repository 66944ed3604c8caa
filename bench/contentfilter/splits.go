package main

import (
	"slices"
	"strings"
	"time"
)

// split of the mail into what is learnt and what is judged.
type split struct {
	name  string
	about string
	train func(*message) bool
	test  func(*message) bool
}

func day(year int, month time.Month) time.Time {
	return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
}

// newest mail of the modern corpora is judged, the rest learnt.
var newest = day(2025, time.January)

// autumn parts the mail of 2002.
var autumn = day(2002, time.September)

func (m *message) old() bool               { return m.corpus == "mail-spamassassin-public" }
func (m *message) before(t time.Time) bool { return m.time.Before(t) }
func (m *message) of(sources ...string) bool {
	return slices.ContainsFunc(sources, func(s string) bool { return strings.HasPrefix(m.source, s) })
}

// unseen are mailing lists that are kept out of the training in one split.
var unseen = []string{"usrp-users", "linux-integrity"}

// splits by time and by source, never random.
var splits = []split{
	{"2002 by time", "mail of 2002, learnt to 31 August, judged from September",
		func(m *message) bool { return m.old() && m.before(autumn) },
		func(m *message) bool { return m.old() && !m.before(autumn) }},
	{"modern by time", "lists and phishing, learnt 2019 to 2024, judged 2025 and 2026",
		func(m *message) bool { return !m.old() && m.before(newest) },
		func(m *message) bool { return !m.old() && !m.before(newest) }},
	{"hard ham", "learnt easy ham and the older spam; judged newsletters and the like, and the newer spam",
		func(m *message) bool { return m.of("easy-ham", "spam-2") },
		func(m *message) bool { return m.of("hard-ham", "spam-1") }},
	{"unseen lists", "learnt all mail of 2002, three lists and phishing to 2024; judged two other lists, and phishing of 2025 and 2026",
		func(m *message) bool {
			return m.old() || !m.of(unseen...) && (!m.spam || m.before(newest))
		},
		func(m *message) bool { return m.of(unseen...) || !m.old() && m.spam && !m.before(newest) }},
	{"2002 to modern", "learnt mail of 2002; judged lists and phishing of 2019 to 2026",
		func(m *message) bool { return m.old() },
		func(m *message) bool { return !m.old() }},
	{"modern to 2002", "learnt lists and phishing of 2019 to 2026; judged mail of 2002",
		func(m *message) bool { return !m.old() },
		func(m *message) bool { return m.old() }},
}

func pick(all []*message, which func(*message) bool) []*message {
	var out []*message
	for _, m := range all {
		if which(m) {
			out = append(out, m)
		}
	}
	return out
}

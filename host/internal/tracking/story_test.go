package tracking

import "testing"

// said is a line of the ledger about one recipient.
func said(event, item string) Record {
	return Record{Event: event, Item: item, Message: "m.1", Recipients: []Recipient{{Address: "A@x.example"}}}
}

// copied is a line about a copy that is kept beside the delivery.
func copied(event, item string) Record {
	r := said(event, item)
	r.Recipients[0].Status = Copied
	return r
}

func TestEnding(t *testing.T) {
	for _, one := range []struct {
		name    string
		records []Record
		want    string
	}{
		{"nothing but accepted", []Record{said(Receive, "")}, "accepted"},
		{"refused", []Record{said(Reject, "")}, "refused"},
		{"the last counts", []Record{said(Receive, ""), said(Defer, "m.1"), said(Send, "m.1")}, "delivered to 1 recipient"},
		{"removed while it waited", []Record{said(Receive, ""), said(Defer, "m.1"), said(Drop, "m.1")}, "dropped for 1 recipient"},
		{"deleted from quarantine", []Record{said(Receive, ""), said(Quarantine, "m.1"), said(Drop, "m.1")}, "dropped for 1 recipient"},
		{"released", []Record{said(Receive, ""), said(Quarantine, "m.1"), said(Release, "m.1")}, "accepted"},
		{"a kept copy is deleted after the delivery", []Record{said(Receive, ""), said(Send, "m.1"), said(Drop, "m.1-copy")}, "delivered to 1 recipient"},
		{"a kept copy is released after the delivery", []Record{said(Receive, ""), said(Send, "m.1"), said(Release, "m.1-copy")}, "delivered to 1 recipient"},
		{"a kept copy is deleted while the mail waits", []Record{said(Receive, ""), copied(Quarantine, "m.1-copy"), said(Defer, "m.1"), said(Drop, "m.1-copy")}, "put off for 1 recipient"},
		{"a kept copy is released while the mail waits", []Record{said(Receive, ""), said(Defer, "m.1"), copied(Quarantine, "m.1-copy"), said(Release, "m.1-copy")}, "put off for 1 recipient"},
		{"a copy is kept", []Record{said(Receive, ""), copied(Quarantine, "m.1-copy")}, "accepted"},
		{"a copy is kept after the delivery", []Record{said(Receive, ""), said(Send, "m.1"), copied(Quarantine, "m.1-copy")}, "delivered to 1 recipient"},
		{"a kept copy is deleted after the failure", []Record{said(Receive, ""), said(Fail, "m.1"), said(Drop, "m.1-copy")}, "failed for 1 recipient"},
	} {
		t.Run(one.name, func(t *testing.T) {
			if got := ending("m.1", one.records); got != one.want {
				t.Errorf("%q, want %q", got, one.want)
			}
		})
	}
}

package queue

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
)

// FuzzRecord feeds arbitrary records to the decoders: no panic, and what can be read is the same when written again.
func FuzzRecord(f *testing.F) {
	item := &Item{ID: "x", Message: "x", Received: time.Unix(1, 2), Mail: &envelope.Mail{
		Recipients: []*envelope.Recipient{{Index: 1, Reply: envelope.Reply{Code: 450}, Stamps: envelope.Stamps{"a": {1}}}},
	}}
	f.Add(encodeItem(item, versions{1, 2, 3, 4}))
	f.Add(encodeEntry(item))
	f.Add([]byte{recordVersion, 0xff, 0xff})
	f.Add([]byte{recordVersion, 3, 0}) // due when 1970 began
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, record []byte) {
		var e Entry
		_ = decodeEntry(&e, record)
		if _, err := decodeHead(record); err != nil {
			return
		}
		first, h, err := decodeItem("x", record)
		if err != nil {
			return
		}
		second, again, err := decodeItem("x", encodeItem(first, h.versions))
		if err != nil || again.versions != h.versions || second.Message != first.Message ||
			len(second.Mail.Recipients) != len(first.Mail.Recipients) || !second.Next.Equal(first.Next) {
			t.Fatalf("written again it differs: %v\n%+v\n%+v", err, first, second)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	item := &Item{ID: NewID(), Session: envelope.Session{ID: NewID(), Helo: "client.example"}, Mail: &envelope.Mail{
		Recipients: []*envelope.Recipient{{}, {}}}, Prefix: make([]byte, 200)}
	record := encodeItem(item, versions{1, 2, 1, 2})
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			record = encodeItem(item, versions{1, 2, 1, 2})
		}
	})
	b.Run("as JSON", func(b *testing.B) {
		for b.Loop() {
			if _, err := json.Marshal(item); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := decodeItem("x", record); err != nil {
				b.Fatal(err)
			}
		}
	})
}

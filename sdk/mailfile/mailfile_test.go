package mailfile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                    {""},
		"Subject: a\n\nFrom here\n\nFrom x\n": {"Subject: a\n\nFrom here\n\nFrom x\n"},
		"From x\nA: b\n\nc\n":                 {"A: b\n\nc\n"},
		"From x\nA: b\n\nc\n\nFrom y\nD: e\n\nf\n\n":                     {"A: b\n\nc\n", "D: e\n\nf\n"},
		"From x\r\nA: b\r\n\r\nc\r\n\r\nFrom y\r\nD: e\r\n\r\nf\r\n\r\n": {"A: b\r\n\r\nc\r\n", "D: e\r\n\r\nf\r\n"},
		"From x\nA: b\nFrom y\n\n>From z\n":                              {"A: b\nFrom y\n\n>From z\n"},
		"From x":                                                         {""},
		"From x\nFrom y\n\nFrom z\n":                                     {"From y\n", ""},
	} {
		var got []string
		for _, m := range Split([]byte(text)) {
			got = append(got, string(m))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q is split into %q, want %q", text, got, want)
		}
	}
}

func TestWalk(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a/cur/1": "A: 1\n\n", "a/tmp/2": "A: 2\n\n", "b": "From x\nA: 3\n\n\nFrom x\nA: 4\n\n", "tmp": "A: 5\n\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	note := func(name string, message []byte) error {
		got = append(got, strings.TrimPrefix(name, dir+"/")+" "+strings.TrimSpace(string(message)))
		return nil
	}
	if err := Walk(context.Background(), dir, note); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a/cur/1 A: 1", "b, message 1 A: 3", "b, message 2 A: 4", "tmp A: 5"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := Walk(context.Background(), dir+"/none", note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if err := Walk(ended, dir, note); !errors.Is(err, context.Canceled) {
		t.Errorf("an end: %v", err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("From x\nA: b\n\nc\n\nFrom y\r\nD: e\r\n\r\nf\r\n\r\n"))
	f.Add([]byte("From \n\nFrom \n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		before, size := bytes.Clone(text), 0
		for _, m := range Split(text) {
			size += len(m)
		}
		if size > len(text) || !bytes.Equal(text, before) {
			t.Errorf("%q: %d octets of %d", text, size, len(text))
		}
	})
}

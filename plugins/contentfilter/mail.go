package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
)

// stored message of a collection.
type stored struct {
	name string // of its file; with a number in a mbox
	text []byte
}

// maxStored is how large a message of a collection may be; what is larger was never judged either.
const maxStored = 16 << 20

// messages calls use with every message of a mbox file, a Maildir (its tmp is left out) or a folder of files, in the
// order of their names.
func messages(ctx context.Context, path string, use func(stored) error) error {
	return filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir() && d.Name() == "tmp" && name != path:
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return split(name, text, use)
	})
}

// split a mbox at its From lines; a file without one at its start is one message.
func split(name string, text []byte, use func(stored) error) error {
	if !bytes.HasPrefix(text, []byte("From ")) {
		return useOne(stored{name, text}, use)
	}
	number := 0
	for len(text) > 0 {
		end := messageEnd(text)
		number++
		one := stored{name, text[:end]}
		if number > 1 || end < len(text) {
			one.name = fmt.Sprintf("%s, message %d", name, number)
		}
		if err := useOne(one, use); err != nil {
			return err
		}
		text = text[end:]
	}
	return nil
}

func useOne(s stored, use func(stored) error) error {
	if len(s.text) > maxStored {
		return nil
	}
	return use(s)
}

// messageEnd is where the next From line behind an empty line begins.
func messageEnd(text []byte) int {
	for at := 0; ; {
		next := bytes.Index(text[at:], []byte("\nFrom "))
		if next < 0 {
			return len(text)
		}
		at += next + 1
		if bytes.HasSuffix(text[:at], []byte("\n\n")) || bytes.HasSuffix(text[:at], []byte("\r\n\r\n")) {
			return at
		}
	}
}

// features of a stored message.
func (s stored) features(ctx context.Context, recipe classifier.Recipe, names bool) (*classifier.Features, error) {
	d, err := classifier.ReadBytes(ctx, s.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return d.Features(recipe, names), nil
}

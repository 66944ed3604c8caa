// Package mailfile reads mail that is stored in files: mbox, Maildir, or a message a file.
package mailfile

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Walk calls use with every message at path, in the order of their files' names: path is a mbox, a file with one message, or
// a folder of such, for example a Maildir, whose tmp is left out. What use is given is the name of the file, with the number
// of the message in a mbox, and the message as it stands there. The first error of use ends it, and so does ctx.
func Walk(ctx context.Context, path string, use func(name string, message []byte) error) error {
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
		return each(name, text, use)
	})
}

func each(name string, text []byte, use func(name string, message []byte) error) error {
	mbox := bytes.HasPrefix(text, fromLine)
	for i, message := range Split(text) {
		where := name
		if mbox {
			where = fmt.Sprintf("%s, message %d", name, i+1)
		}
		if err := use(where, message); err != nil {
			return err
		}
	}
	return nil
}

// fromLine begins a message of a mbox (RFC 4155), behind an empty line.
var fromLine = []byte("From ")

// Split a mbox into its messages, without their From lines and the empty lines that end them. From lines that are quoted in
// a message stay so. What does not begin with a From line is one message.
func Split(text []byte) [][]byte {
	if !bytes.HasPrefix(text, fromLine) {
		return [][]byte{text}
	}
	var all [][]byte
	for len(text) > 0 {
		end := messageEnd(text)
		all = append(all, withoutFrom(text[:end]))
		text = text[end:]
	}
	return all
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

func withoutFrom(message []byte) []byte {
	_, rest, _ := bytes.Cut(message, []byte("\n"))
	for _, end := range []string{"\r\n", "\n"} {
		if bytes.HasSuffix(rest, []byte(end+end)) {
			return rest[: len(rest)-len(end) : len(rest)-len(end)]
		}
	}
	return rest
}

package tracking

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// AppendLine appends r to b as a line of the ledger, for a process that does not have the ledger open. It sets the
// time where that is zero.
func AppendLine(b []byte, r *Record) []byte {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	return appendRecord(b, r)
}

// Adopt writes lines that another process has made with AppendLine, and returns when they can be read. With again it
// leaves out those that stand in the ledger already: a host that ended after writing them could not say so.
func (f *File) Adopt(lines []byte, again bool) error {
	if again {
		var err error
		if lines, err = f.missing(lines); err != nil {
			return err
		}
	}
	for len(lines) > 0 {
		part := lines
		if len(part) > maxPending/4 {
			part = part[:bytes.LastIndexByte(part[:maxPending/4], '\n')+1]
		}
		if len(part) == 0 {
			return errors.New("a line of the ledger is too long")
		}
		f.addLines(part, bytes.Count(part, []byte{'\n'}))
		if err := f.Flush(); err != nil {
			return err
		}
		lines = lines[len(part):]
	}
	return nil
}

// lookBack is how many files of the ledger are searched for lines that may be there.
const lookBack = 2

// missing are those of lines that do not stand in the newest files.
func (f *File) missing(lines []byte) ([]byte, error) {
	if err := f.Flush(); err != nil {
		return nil, err
	}
	names, err := files(f.dir)
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for line := range bytes.Lines(lines) {
		wanted[string(line)] = true
	}
	for i, name := range slices.Backward(names) {
		if i < len(names)-lookBack {
			break
		}
		if err := strike(filepath.Join(f.dir, name), wanted); err != nil {
			return nil, err
		}
	}
	var left []byte
	for line := range bytes.Lines(lines) {
		if wanted[string(line)] {
			left = append(left, line...)
		}
	}
	return left, nil
}

// strike removes from wanted the lines that a file of the ledger has.
func strike(path string, wanted map[string]bool) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading ledger: %w", err)
	}
	defer file.Close()
	for r := bufio.NewReaderSize(file, 256<<10); ; {
		line, err := r.ReadString('\n')
		delete(wanted, line)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading ledger: %w", err)
		}
	}
}

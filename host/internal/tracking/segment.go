package tracking

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

const (
	filePrefix = "ledger-"
	fileSuffix = ".jsonl"
	dayLayout  = "20060102"
)

// segment is the file that is being written. Names sort by time: ledger-20061102-0001.jsonl.
type segment struct {
	dir   string
	limit int64 // bytes of a file
	file  *os.File
	day   string
	size  int64
	torn  bool // the last write failed halfway: a line end is owed
}

// write appends lines, in a new file where the day or the size ask for one. turned says that it was.
func (s *segment) write(lines []byte, now time.Time) (turned bool, err error) {
	if s.file == nil || s.size > 0 && s.size+int64(len(lines)) > s.limit || now.UTC().Format(dayLayout) > s.day {
		if err := s.turn(now); err != nil {
			return false, err
		}
		turned = true
	}
	if s.torn {
		lines = append([]byte{'\n'}, lines...)
	}
	n, err := s.file.Write(lines)
	s.size += int64(n)
	s.torn = err != nil && (n > 0 || s.torn)
	if err != nil {
		return turned, fmt.Errorf("writing ledger: %w", err)
	}
	return turned, nil
}

// open goes on with the newest file where it is of today and has room.
func (s *segment) open(now time.Time) error {
	names, err := files(s.dir)
	if err != nil {
		return err
	}
	day := now.UTC().Format(dayLayout)
	if len(names) == 0 || dayOf(names[len(names)-1]) != day {
		return s.turn(now)
	}
	file, err := os.OpenFile(filepath.Join(s.dir, names[len(names)-1]), os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening ledger: %w", err)
	}
	s.file, s.day = file, day
	return s.measure()
}

// measure finds the size, and whether the file ends in the middle of a line because its host was killed.
func (s *segment) measure() error {
	info, err := s.file.Stat()
	if err != nil {
		return fmt.Errorf("opening ledger: %w", err)
	}
	s.size = info.Size()
	if s.size == 0 {
		return nil
	}
	var last [1]byte
	if _, err := s.file.ReadAt(last[:], s.size-1); err != nil {
		return fmt.Errorf("opening ledger: %w", err)
	}
	s.torn = last[0] != '\n'
	return nil
}

// turn starts the next file of now's day.
func (s *segment) turn(now time.Time) error {
	names, err := files(s.dir)
	if err != nil {
		return err
	}
	day, number := now.UTC().Format(dayLayout), 1
	if len(names) > 0 {
		last := names[len(names)-1]
		// A clock that was set back must not make a file that sorts before the others.
		if d := dayOf(last); d >= day {
			day, number = d, numberOf(last)+1
		}
	}
	path := filepath.Join(s.dir, fmt.Sprintf("%s%s-%06d%s", filePrefix, day, number, fileSuffix))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening ledger: %w", err)
	}
	old := s.file
	s.file, s.day, s.size, s.torn = file, day, 0, false
	if old != nil {
		if err := old.Close(); err != nil {
			return fmt.Errorf("closing ledger file: %w", err)
		}
	}
	return nil
}

func (s *segment) close() error {
	if s.file == nil {
		return nil
	}
	return errors.Join(s.file.Sync(), s.file.Close())
}

// tidy removes the oldest files until the ledger is within its bounds. The one being written stays.
func (f *File) tidy() error {
	names, err := files(f.dir)
	if err != nil {
		return err
	}
	sizes, total, err := fileSizes(f.dir, names)
	if err != nil {
		return err
	}
	bounds := f.options.Config
	oldest := f.options.Now().UTC().Add(-bounds.MaxAge).Format(dayLayout)
	for i, name := range names[:max(len(names)-1, 0)] {
		tooMuch := bounds.MaxBytes > 0 && total > bounds.MaxBytes
		tooOld := bounds.MaxAge > 0 && dayOf(name) < oldest
		if !tooMuch && !tooOld {
			break
		}
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			return fmt.Errorf("removing old ledger file: %w", err)
		}
		total -= sizes[i]
	}
	return nil
}

func fileSizes(dir string, names []string) (sizes []int64, total int64, err error) {
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, 0, fmt.Errorf("measuring ledger: %w", err)
		}
		sizes = append(sizes, info.Size())
		total += info.Size()
	}
	return sizes, total, nil
}

// files of the ledger, oldest first.
func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing ledger: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filePrefix) && strings.HasSuffix(e.Name(), fileSuffix) && dayOf(e.Name()) != "" {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// dayOf answers with the day in a file's name, "" where there is none.
func dayOf(name string) string {
	day, _, _ := strings.Cut(strings.TrimPrefix(name, filePrefix), "-")
	if _, err := time.Parse(dayLayout, day); err != nil {
		return ""
	}
	return day
}

func numberOf(name string) int {
	_, number, _ := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(name, fileSuffix), filePrefix), "-")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return n
}

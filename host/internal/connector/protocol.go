package connector

import (
	"bufio"
	"encoding/csv"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Bounds of a protocol log.
const (
	maxProtocolLog = 10 << 20 // octets of a file; the one before it is kept
	protocolFlush  = time.Second
)

// ProtocolLog is the log of what connections say, a line of CSV each: time, connector, session, number of the line in its
// session, local and remote address, event, data. Events are + and - for beginning and end, < and > for what the client
// and we say, * for the rest. It never holds secrets or bodies.
type ProtocolLog struct {
	connector string
	mu        sync.Mutex
	out       *bufio.Writer
	lines     *csv.Writer
	file      *os.File
	path      string
	size      int64
	flushing  bool
}

func newProtocolLog(connector string, w io.Writer) *ProtocolLog {
	l := &ProtocolLog{connector: connector}
	l.use(w)
	return l
}

func openProtocolLog(dataDir, connector string) (*ProtocolLog, error) {
	dir := filepath.Join(dataDir, "protocol")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("protocol log: %w", err)
	}
	l := &ProtocolLog{connector: connector, path: filepath.Join(dir, "receive-"+connector+".csv")}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *ProtocolLog) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("protocol log: %w", err)
	}
	if info, err := f.Stat(); err == nil {
		l.size = info.Size()
	}
	l.file = f
	l.use(f)
	return nil
}

func (l *ProtocolLog) use(w io.Writer) {
	l.out = bufio.NewWriterSize(w, 16<<10)
	l.lines = csv.NewWriter(l.out)
}

// session is the log of one session; nil for no log.
func (l *ProtocolLog) session(id string, local, remote netip.AddrPort) func(event byte, data string) {
	if l == nil {
		return nil
	}
	number := 0
	from, to := local.String(), remote.String()
	return func(event byte, data string) {
		l.write([]string{
			time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), l.connector, id, strconv.Itoa(number), from, to,
			string(event), data,
		})
		number++
	}
}

func (l *ProtocolLog) write(fields []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		return
	}
	// A full disk costs lines of this log, not sessions.
	_ = l.lines.Write(fields)
	for _, f := range fields {
		l.size += int64(len(f)) + 1
	}
	if !l.flushing {
		l.flushing = true
		time.AfterFunc(protocolFlush, l.flush)
	}
	if l.file != nil && l.size > maxProtocolLog {
		l.rotate()
	}
}

func (l *ProtocolLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushing = false
	l.flushLocked()
}

func (l *ProtocolLog) flushLocked() {
	if l.out == nil {
		return
	}
	l.lines.Flush()
	_ = l.out.Flush()
}

// rotate begins a new file.
func (l *ProtocolLog) rotate() {
	l.flushLocked()
	_ = l.file.Close()
	_ = os.Rename(l.path, l.path+".1")
	l.size = 0
	if l.open() != nil {
		l.file, l.out = nil, nil
	}
}

func (l *ProtocolLog) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked()
	if l.file != nil {
		_ = l.file.Close()
	}
	l.out = nil
}

// Package logtest keeps what is logged in a test.
package logtest

import (
	"strings"
	"sync"
)

// Output is a log in memory, for hclog.LoggerOptions. It may be read while it is written.
type Output struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

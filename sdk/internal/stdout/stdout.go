// Package stdout takes standard output away from everybody while a process serves a host: the host reads one
// line there, and a stray print before it would break the handshake. It does so while packages are
// initialized, which is before any code of an agent's own main package runs.
package stdout

import (
	"os"
	"syscall"
)

// CookieKey and CookieValue are the magic cookie: the host sets this variable for the agents it starts.
const (
	CookieKey   = "POSTERN_AGENT"
	CookieValue = "b7c1d0f2-agent"
)

// Handshake is where the one line for the host goes. In a process that no host has started it is os.Stdout.
var Handshake = take()

// take moves descriptor 1 aside and puts standard error in its place, for child processes and C code too.
func take() *os.File {
	if os.Getenv(CookieKey) != CookieValue {
		return os.Stdout
	}
	fd, err := syscall.Dup(1)
	if err != nil {
		return os.Stdout
	}
	syscall.CloseOnExec(fd)
	if err := syscall.Dup3(2, 1, 0); err != nil {
		syscall.Close(fd)
		return os.Stdout
	}
	return os.NewFile(uintptr(fd), "handshake")
}

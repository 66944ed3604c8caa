package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalWidth is 0 for what is no terminal.
func terminalWidth(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// readPassword reads a line, without showing it where it is typed. The terminal is as before when it returns, also
// where ctx has ended it.
func (a *app) readPassword(ctx context.Context) (string, error) {
	file, ok := a.stdin.(*os.File)
	if !ok || !isTerminal(file) {
		return firstLine(a.stdin)
	}
	before, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(file.Fd()), unix.TCSETS, &hidden); err != nil {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	fmt.Fprint(a.stderr, "Password: ")
	line, err := lineOrEnd(ctx, file)
	fmt.Fprintln(a.stderr)
	return line, errors.Join(err, unix.IoctlSetTermios(int(file.Fd()), unix.TCSETS, before))
}

func lineOrEnd(ctx context.Context, r io.Reader) (line string, err error) {
	done := make(chan struct{})
	go func() { defer close(done); line, err = firstLine(r) }()
	select {
	case <-done:
		return line, err
	case <-ctx.Done():
		return "", errors.New("interrupted")
	}
}

func firstLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// progress shows how far long work is, on one line of a terminal and nowhere else.
func (a *app) progress(format string, args ...any) {
	if a.terminal {
		fmt.Fprintf(a.stderr, "\r\x1b[K"+format, args...)
	}
}

// progressEnd removes the line.
func (a *app) progressEnd() {
	if a.terminal {
		fmt.Fprint(a.stderr, "\r\x1b[K")
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// command is an engine that is a program.
type command struct{ Command }

// maxOutput of a program that is read, in octets.
const maxOutput = 64 << 10

// filePlace stands for the file in the arguments of a program; the part is its descriptor 3.
const (
	filePlace = "{file}"
	fileName  = "/proc/self/fd/3"
)

// close implements engine.
func (c *command) close() {}

// scan implements engine.
func (c *command) scan(ctx context.Context, o *object) (malware string, err error) {
	p := program{line: c.Run, in: o.open()}
	if slices.ContainsFunc(c.Run, func(argument string) bool { return strings.Contains(argument, filePlace) }) {
		p.in = nil
		if p.file, err = o.descriptor(); err != nil {
			return "", err
		}
	}
	code, output, err := p.run(ctx)
	switch {
	case err != nil:
		return "", err
	case slices.Contains(c.Infected, code):
		return orUnnamed(c.found(output)), nil
	case slices.Contains(c.Clean, code):
		return "", nil
	}
	return "", fmt.Errorf("exit code %d: %s", code, clip(firstText(output), maxName))
}

// found is the name in the output.
func (c *command) found(output []byte) string {
	if m := c.Name.FindSubmatch(output); m != nil {
		return string(m[min(1, len(m)-1)])
	}
	return ""
}

// version implements engine.
func (c *command) version(ctx context.Context) (version, error) {
	if len(c.Version) == 0 {
		return version{}, nil
	}
	code, output, err := program{line: c.Version}.run(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("version: exit code %d", code)
	}
	if err != nil {
		return version{}, err
	}
	text := strings.TrimSpace(firstText(output))
	if v := parseVersion(text); v.text != "" {
		return v, nil
	}
	return version{text: clip(text, maxName)}, nil
}

// firstText is the first line that is not empty.
func firstText(output []byte) string {
	for line := range strings.Lines(string(output)) {
		if line = strings.TrimSpace(line); line != "" {
			return line
		}
	}
	return ""
}

// program to be run.
type program struct {
	line []string
	in   io.Reader // standard input
	file *os.File  // that {file} stands for
}

// run it in a process group of its own, which ends with ctx.
func (p program) run(ctx context.Context) (code int, output []byte, err error) {
	cmd := exec.CommandContext(ctx, p.line[0])
	for _, argument := range p.line[1:] {
		cmd.Args = append(cmd.Args, strings.ReplaceAll(argument, filePlace, fileName))
	}
	cmd.Stdin = p.in
	if p.file != nil {
		cmd.ExtraFiles = []*os.File{p.file}
	}
	out := &bounded{room: maxOutput}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, nil, ctx.Err()
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), out.text.Bytes(), nil
	case cmd.ProcessState != nil && cmd.ProcessState.Exited(): // it has not read all of its input
		return cmd.ProcessState.ExitCode(), out.text.Bytes(), nil
	case err != nil:
		return 0, nil, err
	}
	return 0, out.text.Bytes(), nil
}

// bounded keeps the beginning of what is written.
type bounded struct {
	room int
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.room)
	b.room -= n
	b.text.Write(p[:n])
	return len(p), nil
}

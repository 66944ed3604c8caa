// Package command is what `postern` can be told on the command line. It lies below host because it is made of the
// host's inner packages; cmd/postern only calls Main.
package command

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Main runs the command in os.Args and answers with the exit status: 0 done, 1 failed with a reason, 2 misuse.
func Main(version string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		terminal: isTerminal(os.Stdout), width: terminalWidth(os.Stdout),
		now: time.Now, version: version,
	}
	a.color = a.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return a.main(ctx, commands(a), os.Args[1:])
}

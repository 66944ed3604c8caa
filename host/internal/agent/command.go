package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// RunCommand runs a subcommand of the agent's binary with its configuration (POSTERN_CONFIG, JSON) and state
// folder in the environment, and answers with its exit status; 128 and the signal if one ended it. It runs in
// the caller's process group, so that a person can interrupt it. The error says why it could not be run.
func RunCommand(ctx context.Context, o Options, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	o = o.withDefaults()
	if len(o.Spec.Command) == 0 {
		return 0, fmt.Errorf("agent %s: it is attached to, so there is no command to run", o.Spec.Name)
	}
	if err := makeState(o); err != nil {
		return 0, fmt.Errorf("agent %s: %w", o.Spec.Name, err)
	}
	command := o.Spec.Command
	cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], args...)...)
	cmd.Env = append(cleanEnvironment(o), "POSTERN_CONFIG="+string(o.Spec.Config))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = outputGrace
	runtime.LockOSThread() // Pdeathsig comes when this thread ends
	defer runtime.UnlockOSThread()
	policy := policyOf(o, "")
	sealed, err := sealedFiles(o)
	if err != nil {
		return 0, fmt.Errorf("agent %s: %w", o.Spec.Name, err)
	}
	policy.Sealed = sealed
	policy.Read = append(policy.Read, existing(args)...) // who types a path wants it read
	cmd.Env = policy.Environment(cmd.Env)
	warnings, err := sandbox.Start(cmd, policy)
	if err != nil {
		return 0, fmt.Errorf("agent %s: running its command: %w", o.Spec.Name, err)
	}
	ended := cmd.Wait()
	for _, text := range warnings { // behind what the command prints, not in the middle of it
		o.Logger.Warn("sandbox: "+text, "agent", o.Spec.Name)
	}
	return exitStatus(o, ended)
}

// existing are the arguments that name a file or folder.
func existing(args []string) []string {
	var paths []string
	for _, word := range args {
		path, err := filepath.Abs(word)
		if err != nil {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// exitStatus makes an exit status of what Run answered with.
func exitStatus(o Options, err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case !errors.As(err, &exit):
		return 0, fmt.Errorf("agent %s: running its command: %w", o.Spec.Name, err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

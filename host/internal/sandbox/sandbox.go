// Package sandbox starts a process that may do little: what an agent may read, write, connect to and use up is
// decided before its program runs, so it holds in any language.
//
// The host starts itself once more as a launcher, which gives up what the process is not to have and then executes
// the agent's program in its own place. Nothing of the launcher stays.
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Policy is what a process may do. The zero Policy allows nothing but to run.
type Policy struct {
	// Program names the files that are run: the program, and what is a script of it. They may be read and executed.
	Program []string
	// Sealed are files, the program first if it is one, that must still be what somebody has looked into.
	Sealed []Sealed
	// State and Temp are folders of its own, which exist; "": none. It may write below both. The owner of State is
	// its user where the host runs as root.
	State, Temp string
	// Ways are the host's folders that lead to State and Temp. A user of its own is let through them.
	Ways []string
	// Read names files and folders it may read, and execute. What is missing is left out.
	Read []string
	// Write names folders below which it may make, change and remove files, and files it may change. They must exist.
	Write []string
	// Connect are the TCP ports it may connect to, at any address: the kernel tells ports apart, not addresses.
	Connect []uint16
	// Listen are the TCP ports it may listen at.
	Listen []uint16
	// Sockets are paths of Unix sockets it may connect to. Only newer kernels (Landlock ABI 9) refuse others; else
	// it is for those who serve them to look whom they serve.
	Sockets []string
	// Datagrams allows UDP, as questions to the DNS need it. Most kernels cannot tell where they go.
	Datagrams bool
	// DatagramPorts are the ports that Datagrams is for, where the kernel can tell.
	DatagramPorts []uint16
	// Processes is how many processes it may start; 0: none.
	Processes int
	// Memory in bytes, 0: no limit. Without Grouped it is that of each process (RLIMIT_DATA).
	Memory int64
	// Grouped says that Memory is enforced by the cgroup of all its processes together: see Group.
	Grouped bool
	// Files is how many descriptors it may have open (RLIMIT_NOFILE), 0: as many as the host.
	Files int
	// FileSize in bytes of a file it writes (RLIMIT_FSIZE), 0: no limit.
	FileSize int64
	// Nice is added to the host's nice value, 0 to 19.
	Nice int
	// UID and GID it runs under, chosen by Start where the host runs as root; 0: those of the host.
	UID, GID uint32
	// Required refuses to start it where the kernel lacks a part of this.
	Required bool
	// Off leaves all of it out, but for UID, GID and limits of resources.
	Off bool
}

// launcherName is the first word of the launcher's command line. It is how the binary knows that it is one.
const launcherName = "postern-launcher"

// launchPatience is how long the launcher may take. It does nothing that waits.
const launchPatience = 20 * time.Second

// order is what the launcher is told.
type order struct {
	Policy    Policy
	Path      string
	Args      []string
	Env       []string
	Namespace bool
	Tasks     int64       `json:",omitempty"` // see tasksBeside
	Drop      *Credential `json:",omitempty"` // be a host of this user, instead of a process under Policy
}

// report is what the launcher answers. There may be several; the last says the most.
type report struct {
	Error    string   `json:",omitempty"`
	Warnings []string `json:",omitempty"`
}

// Start starts a command under a policy, instead of cmd.Start. SysProcAttr.Pdeathsig holds as without. The
// warnings say what the kernel could not do.
func Start(cmd *exec.Cmd, p Policy) (warnings []string, err error) {
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	if os.Geteuid() == 0 {
		lack, err := p.own()
		if err == nil && lack != "" && p.Required {
			err = errors.New("sandbox: " + lack)
		}
		if err != nil {
			return nil, err
		}
		if lack != "" {
			defer func() { warnings = append(warnings, lack) }()
		}
	}
	started, err := Launch(cmd, p)
	return append(warnings, started...), err
}

// Launch is Start for a policy whose UID and GID are chosen and own its folders already.
func Launch(cmd *exec.Cmd, p Policy) (warnings []string, err error) {
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	o := order{Policy: p, Path: cmd.Path, Args: cmd.Args, Env: cmd.Environ(), Tasks: tasksBeside(p)}
	if p.Processes > 0 && !p.Off {
		return startApart(cmd, o)
	}
	return start(cmd, o)
}

// startApart starts a command in a process namespace of its own: when it ends, all ends that it has started,
// wherever that went.
func startApart(cmd *exec.Cmd, o order) ([]string, error) {
	plain := *cmd
	plain.ExtraFiles = slices.Clone(cmd.ExtraFiles)
	attr := *cmd.SysProcAttr
	cmd.SysProcAttr = apart(attr)
	o.Namespace = true
	warnings, err := start(cmd, o)
	if !errors.Is(err, errNoNamespace) {
		return warnings, err
	}
	lack := "it may start processes, and none of the namespaces that would end them with it can be had: " + err.Error()
	if o.Policy.Required {
		return nil, errors.New("sandbox: " + lack)
	}
	*cmd = plain
	o.Namespace = false
	warnings, err = start(cmd, o)
	return append([]string{lack}, warnings...), err
}

// errNoNamespace: the process could not be started in namespaces of its own.
var errNoNamespace = errors.New("no namespace")

// apart asks for a process namespace, and for the user namespace that whoever is not root needs for it.
func apart(attr syscall.SysProcAttr) *syscall.SysProcAttr {
	attr.Cloneflags |= unix.CLONE_NEWPID
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	return &attr
}

// start starts the launcher and waits until it has become the command, or says why not.
func start(cmd *exec.Cmd, o order) ([]string, error) {
	spec, err := memory(o)
	if err != nil {
		return nil, err
	}
	defer spec.Close()
	answers, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer answers.Close()
	first := 3 + len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles, spec, theirs)
	cmd.Path = "/proc/self/exe" // also when the file has been replaced since
	cmd.Args = []string{launcherName, strconv.Itoa(first), strconv.Itoa(first + 1)}
	cmd.Env = []string{"GOMAXPROCS=1"}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		if o.Namespace {
			err = fmt.Errorf("%w: %w", errNoNamespace, err)
		}
		return nil, err
	}
	said, err := listen(answers)
	if err == nil && said.Error != "" {
		err = errors.New(said.Error)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return said.Warnings, err
}

// listen reads what the launcher says until it has become another program, or ended.
func listen(answers *os.File) (report, error) {
	var last report
	if err := answers.SetReadDeadline(time.Now().Add(launchPatience)); err != nil {
		return last, err
	}
	for decoder := json.NewDecoder(answers); ; {
		err := decoder.Decode(&last)
		if err == io.EOF {
			return last, nil
		}
		if err != nil {
			return last, fmt.Errorf("the launcher: %w", err)
		}
	}
}

// memory keeps what the launcher is told in a file without a name: an environment may be larger than a pipe, and
// holds secrets.
func memory(o order) (*os.File, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("telling the launcher: %w", err)
	}
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("telling the launcher: %w", err)
	}
	file := os.NewFile(uintptr(fd), "launch")
	if _, err := file.WriteAt(text, 0); err != nil {
		file.Close()
		return nil, fmt.Errorf("telling the launcher: %w", err)
	}
	return file, nil
}

// Environment is env with what makes a Go program keep to the limit of memory by itself, whoever enforces it: it collects
// garbage rather than dies. Other languages do not look at it.
func (p Policy) Environment(env []string) []string {
	named := func(s string) bool { return strings.HasPrefix(s, "GOMEMLIMIT=") }
	if p.Memory == 0 || slices.ContainsFunc(env, named) {
		return env
	}
	return append(slices.Clip(env), "GOMEMLIMIT="+strconv.FormatInt(p.Memory/10*8, 10))
}

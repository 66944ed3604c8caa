package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the program in the sandbox: hostile does what POSTERN_ATTEMPT names and says on stdout how
// that ended.
func hostile(words []string) {
	do := attempts[words[0]]
	if do == nil {
		fmt.Println("no such attempt")
		os.Exit(2)
	}
	if err := do(words[1:]); err != nil {
		fmt.Println("failed:", err)
		return
	}
	fmt.Println("succeeded")
}

// bodyFD is the descriptor that the program finds open for reading.
const bodyFD = 3

var attempts = map[string]func(args []string) error{
	"read":     func(args []string) error { _, err := os.ReadFile(args[0]); return err },
	"list":     func(args []string) error { _, err := os.ReadDir(args[0]); return err },
	"write":    func(args []string) error { return os.WriteFile(args[0], []byte("x"), 0o600) },
	"make":     func(args []string) error { return os.WriteFile(filepath.Join(args[0], "made"), nil, 0o600) },
	"truncate": func(args []string) error { return os.Truncate(args[0], 0) },
	"remove":   func(args []string) error { return os.Remove(args[0]) },
	"rename":   func(args []string) error { return os.Rename(args[0], args[1]) },
	"link":     func(args []string) error { return os.Link(args[0], args[1]) },
	"symlink":  throughSymlink,
	"chmod":    func(args []string) error { return os.Chmod(args[0], 0o777) },
	"fchmod":   func([]string) error { return unix.Fchmod(bodyFD, 0) },
	"reopen":   reopen,
	"body":     func([]string) error { _, err := unix.Pread(bodyFD, make([]byte, 1), 0); return err },

	"tasks": limitOfTasks,

	"tcp": dial("tcp"), "udp": sendDatagram, "unix": dial("unix"), "abstract": dial("unix"),
	"serve":     func(args []string) error { l, err := net.Listen("tcp", args[0]); closing(l); return err },
	"multipath": func(args []string) error { return connectBy(unix.IPPROTO_MPTCP, args[0]) },
	"fast-open": fastOpen,
	"packet":    func([]string) error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err },
	"raw": func([]string) error {
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		return err
	},
	"vsock": func([]string) error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err },

	"fork":       func([]string) error { return exec.Command("/bin/true").Run() },
	"fork-away":  forkAway,
	"signal":     func(args []string) error { return unix.Kill(number(args[0]), 0) },
	"signal-all": func([]string) error { return unix.Kill(-1, 0) },
	"ptrace":     func(args []string) error { return attach(number(args[0])) },
	"peek":       func(args []string) error { return peek(number(args[0])) },
	"environ":    func(args []string) error { _, err := os.ReadFile("/proc/" + args[0] + "/environ"); return err },
	"descriptor": func(args []string) error { return steal(number(args[0])) },
	"limit":      func(args []string) error { return unix.Prlimit(number(args[0]), unix.RLIMIT_CORE, nil, &unix.Rlimit{}) },
	"socket-owner": func(args []string) error {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(pair[0], 0x8901, number(args[0])) // FIOSETOWN
	},
	"slow":        func(args []string) error { return unix.Setpriority(unix.PRIO_PROCESS, number(args[0]), 19) },
	"immortal":    func([]string) error { return prctl(unix.PR_SET_PDEATHSIG, 0) },
	"namespace":   func([]string) error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"uring":       func([]string) error { return ring() },
	"bpf":         func([]string) error { _, _, e := unix.Syscall(unix.SYS_BPF, 99, 0, 0); return mistake(e, unix.EINVAL) },
	"descriptors": openMany,
	"large-file":  largeFile,
	"memory":      func([]string) error { return fill(512 << 20) },
	"privileges":  privileges,
	"sleep":       func([]string) error { time.Sleep(time.Hour); return nil },
	"host":        host,
	"resolve":     func([]string) error { _, err := net.LookupHost("localhost"); return err },
	"self":        func([]string) error { return unix.Kill(os.Getpid(), unix.SIGCONT) },
}

func number(s string) int { n, _ := strconv.Atoi(s); return n }

func closing(l net.Listener) {
	if l != nil {
		_ = l.Close()
	}
}

// mistake is nil for the error that the kernel gives to those who may call it.
func mistake(got, want syscall.Errno) error {
	if got == want || got == 0 {
		return nil
	}
	return got
}

func dial(network string) func([]string) error {
	return func(args []string) error {
		conn, err := net.DialTimeout(network, args[0], 5*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func sendDatagram(args []string) error {
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("out"))
	return err
}

func address(s string) *unix.SockaddrInet4 {
	host, port, _ := net.SplitHostPort(s)
	a := &unix.SockaddrInet4{Port: number(port)}
	copy(a.Addr[:], net.ParseIP(host).To4())
	return a
}

func connectBy(protocol int, to string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, protocol)
	if err != nil {
		return err
	}
	return unix.Connect(fd, address(to))
}

// fastOpen connects by sending, which goes past the hook of connect(2).
func fastOpen(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("out"), unix.MSG_FASTOPEN, address(args[0]))
}

// reopen opens for writing what was given for reading.
func reopen([]string) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", bodyFD), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("forged"), 0)
	return err
}

func throughSymlink(args []string) error {
	if err := os.Symlink(args[0], args[1]); err != nil {
		return err
	}
	_, err := os.ReadFile(args[1])
	return err
}

// forkAway leaves a process behind, in a session of its own and without a parent.
func forkAway(args []string) error {
	err := exec.Command("/bin/sh", "-c", `setsid sh -c 'sleep 1000 & echo $! > "$0"' "$0" </dev/null >/dev/null 2>&1 & wait`, args[0]).Run()
	if len(args) > 1 && err == nil {
		time.Sleep(time.Hour)
	}
	return err
}

func attach(pid int) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
	return mistake(errno, 0)
}

func peek(pid int) error {
	var word [8]byte
	local := []unix.Iovec{{Base: &word[0], Len: 8}}
	_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	if errors.Is(err, unix.EFAULT) { // allowed, and nothing is there
		return nil
	}
	return err
}

func steal(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(fd, 0, 0)
	return err
}

func ring() error {
	var params [120]byte
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafePointer(&params)), 0)
	return mistake(errno, 0)
}

func openMany(args []string) error {
	for range number(args[0]) {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
			return err
		}
	}
	return nil
}

func largeFile(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	notifyFileSize(signals)
	_, err = f.WriteAt([]byte("x"), int64(number(args[1])))
	return err
}

var kept [][]byte

// fill uses memory.
func fill(size int) error {
	for range size >> 20 {
		kept = append(kept, bytes.Repeat([]byte("x"), 1<<20))
	}
	return nil
}

// privileges fails when there are none left to lose.
func privileges([]string) error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":\t")
		if strings.HasPrefix(name, "CapEff") && strings.Trim(value, "0") != "" || name == "NoNewPrivs" && value != "1" {
			return nil
		}
	}
	return errors.New("no capability, no new privileges")
}

// host is not hostile: it starts what its arguments say in a sandbox, says which process that is, and waits to be
// killed.
func host(args []string) error {
	var p Policy
	if err := json.Unmarshal([]byte(args[0]), &p); err != nil {
		return err
	}
	runtime.LockOSThread() // the signal at the end comes with that of the thread
	cmd := exec.Command(args[1])
	cmd.Env = []string{attemptKey + "=" + strings.Join(args[2:], "\n"), "PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if _, err := Start(cmd, p); err != nil {
		return err
	}
	fmt.Println("pid", cmd.Process.Pid)
	select {}
}

// limitOfTasks fails where its processes may be more than so many.
func limitOfTasks(args []string) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
		return err
	}
	if most, _ := strconv.ParseUint(args[0], 10, 64); limit.Cur > most || limit.Max > most {
		return fmt.Errorf("%d tasks, and %d", limit.Cur, limit.Max)
	}
	return nil
}

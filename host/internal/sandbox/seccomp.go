package sandbox

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter of system calls closes what Landlock leaves open. It names what is refused, not what is allowed, so
// that programs in all languages run, and go on running when their libraries learn new calls.

// Answers of the filter.
const (
	allow     = uint32(unix.SECCOMP_RET_ALLOW)
	refuse    = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	forbid    = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EACCES)
	unknown   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	notSpoken = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EAFNOSUPPORT)
)

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16 // the lower half of the first comes first: both machines are little-endian
)

// x32Bit marks calls of amd64's second ABI, with which numbers would have another meaning.
const x32Bit = 0x40000000

// rule refuses a call whose arguments pass all checks.
type rule struct {
	call   uintptr
	checks []check
	answer uint32
}

// check compares the bits of an argument that mask names. Only the lower 32 count: those are all that the kernel
// looks at in the arguments checked here.
type check struct {
	arg   int
	mask  uint32
	value uint32
	not   bool // holds when they differ
}

func is(arg int, value uint32) check { return check{arg: arg, mask: ^uint32(0), value: value} }
func isNot(arg int, value uint32) check {
	return check{arg: arg, mask: ^uint32(0), value: value, not: true}
}
func has(arg int, bits uint32) check   { return check{arg: arg, mask: bits, not: true} }
func lacks(arg int, bits uint32) check { return check{arg: arg, mask: bits} }

// filter has the kernel refuse the calls that are none of an agent's business.
func (l *launcher) filter() error {
	if l.Policy.Off {
		return nil
	}
	if auditArch == 0 {
		return l.lacks("there is no filter of system calls for %s: the agent can reach other processes of its user", runtime.GOARCH)
	}
	code := assemble(l.rules(uint32(os.Getpid())))
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	// SPEC_ALLOW: a filter is no reason to slow the whole program down (before Linux 5.16 it was).
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return l.lacks("this kernel takes no filter of system calls (%v): the agent can reach other processes of its user", errno)
	}
	return nil
}

// rules of the policy, for the process pid.
func (l *launcher) rules(pid uint32) []rule {
	var all []rule
	for _, call := range append(never, neverHere...) {
		all = append(all, rule{call: call, answer: refuse})
	}
	all = append(all, onlySelf(pid)...)
	all = append(all, l.signals(pid)...)
	all = append(all, l.processes()...)
	all = append(all, l.sockets()...)
	if l.Policy.UID == 0 { // the files of the host are its own
		for _, call := range append(owning, owningHere...) {
			all = append(all, rule{call: call, answer: refuse})
		}
	}
	return append(all,
		// Only SIGKILL at the end of the host, never none.
		rule{unix.SYS_PRCTL, []check{is(0, unix.PR_SET_PDEATHSIG), isNot(1, uint32(unix.SIGKILL))}, refuse})
}

// never lists calls into other processes, out of namespaces and past this filter, and memory that is shared with
// whoever has the same user.
var never = []uintptr{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE,
	unix.SYS_KCMP, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT, unix.SYS_KEXEC_LOAD,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_SYSLOG,
	unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN,
}

// owning lists calls by which an owner changes who may do what with a file. Landlock does not know them.
var owning = []uintptr{
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_SETXATTRAT,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR, unix.SYS_REMOVEXATTRAT, unix.SYS_FILE_SETATTR,
}

// onlySelf keeps a process from limiting, slowing down or moving another of its user.
func onlySelf(pid uint32) []rule {
	other := func(arg int) []check { return []check{isNot(arg, 0), isNot(arg, pid)} }
	const ioprioProcess = 1
	return []rule{
		{unix.SYS_PRLIMIT64, other(0), refuse},
		{unix.SYS_SCHED_SETAFFINITY, other(0), refuse}, {unix.SYS_SCHED_SETSCHEDULER, other(0), refuse},
		{unix.SYS_SCHED_SETPARAM, other(0), refuse}, {unix.SYS_SCHED_SETATTR, other(0), refuse},
		{unix.SYS_SETPRIORITY, []check{isNot(0, unix.PRIO_PROCESS)}, refuse}, {unix.SYS_SETPRIORITY, other(1), refuse},
		{unix.SYS_IOPRIO_SET, []check{isNot(0, ioprioProcess)}, refuse}, {unix.SYS_IOPRIO_SET, other(1), refuse},
	}
}

// signals stay inside. Landlock says so too where it is new enough; then processes may signal their children.
func (l *launcher) signals(pid uint32) []rule {
	const (
		setSignal = 10     // F_SETSIG
		setOwner  = 0x8901 // FIOSETOWN, F_SETOWN's older ways
		setGroup  = 0x8902 // SIOCSPGRP
	)
	rules := []rule{
		{unix.SYS_IOCTL, []check{is(1, setOwner)}, refuse},
		{unix.SYS_IOCTL, []check{is(1, setGroup)}, refuse},
		{unix.SYS_FCNTL, []check{is(1, unix.F_SETOWN)}, refuse},
		{unix.SYS_FCNTL, []check{is(1, unix.F_SETOWN_EX)}, refuse},
		{unix.SYS_FCNTL, []check{is(1, setSignal)}, refuse},
	}
	if l.Policy.Processes > 0 {
		return rules
	}
	rules = append(rules,
		rule{unix.SYS_KILL, []check{isNot(0, pid), isNot(0, 0)}, refuse},
		rule{unix.SYS_TGKILL, []check{isNot(0, pid)}, refuse},
		rule{unix.SYS_RT_SIGQUEUEINFO, []check{isNot(0, pid)}, refuse},
		rule{unix.SYS_RT_TGSIGQUEUEINFO, []check{isNot(0, pid)}, refuse})
	if !l.scoped {
		rules = append(rules, rule{unix.SYS_TKILL, nil, refuse})
	}
	return rules
}

// newNamespaces are the flags of clone(2) by which a process gets rights of root over something.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// processes may be started, or only threads.
func (l *launcher) processes() []rule {
	rules := []rule{
		{unix.SYS_CLONE, []check{has(0, newNamespaces)}, refuse},
		// Its flags are in memory, which a filter cannot look at. C libraries take clone then.
		{unix.SYS_CLONE3, nil, unknown},
	}
	if l.Policy.Processes > 0 {
		return rules
	}
	rules = append(rules, rule{unix.SYS_CLONE, []check{lacks(0, unix.CLONE_THREAD)}, refuse})
	for _, call := range forking {
		rules = append(rules, rule{call: call, answer: refuse})
	}
	return rules
}

// sockets of the families, types and protocols that Landlock's rules are for, and Unix sockets.
func (l *launcher) sockets() []rule {
	const typeBits = 0xf // without SOCK_CLOEXEC and SOCK_NONBLOCK
	rules := []rule{
		{unix.SYS_SOCKET, []check{isNot(0, unix.AF_UNIX), isNot(0, unix.AF_INET), isNot(0, unix.AF_INET6), isNot(0, unix.AF_NETLINK)}, notSpoken},
		{unix.SYS_SOCKET, []check{is(0, unix.AF_NETLINK), isNot(2, unix.NETLINK_ROUTE)}, forbid},
		// TCP fast open connects past Landlock's rules.
		{unix.SYS_SENDTO, []check{has(3, unix.MSG_FASTOPEN)}, forbid},
		{unix.SYS_SENDMSG, []check{has(2, unix.MSG_FASTOPEN)}, forbid},
		{unix.SYS_SENDMMSG, []check{has(3, unix.MSG_FASTOPEN)}, forbid},
	}
	stream, datagram := check{1, typeBits, unix.SOCK_STREAM, false}, check{1, typeBits, unix.SOCK_DGRAM, false}
	differs := func(c check) check { c.not = true; return c }
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		rules = append(rules,
			rule{unix.SYS_SOCKET, []check{is(0, family), differs(stream), differs(datagram)}, forbid},
			rule{unix.SYS_SOCKET, []check{is(0, family), stream, isNot(2, 0), isNot(2, unix.IPPROTO_TCP)}, forbid},
			rule{unix.SYS_SOCKET, []check{is(0, family), datagram, isNot(2, 0), isNot(2, unix.IPPROTO_UDP)}, forbid})
		if !l.Policy.Datagrams {
			rules = append(rules, rule{unix.SYS_SOCKET, []check{is(0, family), datagram}, forbid})
		}
	}
	return rules
}

// assemble makes the program of rules: the first that holds answers.
func assemble(rules []rule) []unix.SockFilter {
	code := []unix.SockFilter{
		load(dataArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch, Jt: 1},
		answer(unknown),
		load(dataNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jf: 1},
		answer(unknown),
	}
	for _, r := range rules {
		code = append(code, r.assemble()...)
	}
	return append(code, answer(allow))
}

// assemble makes the instructions of one rule. The number of the call is loaded before and after them.
func (r rule) assemble() []unix.SockFilter {
	var body []unix.SockFilter
	for i := len(r.checks) - 1; i >= 0; i-- { // from the end, since jumps go forward over what follows
		body = append(r.checks[i].assemble(len(body)+1), body...)
	}
	body = append(body, answer(r.answer))
	if len(r.checks) > 0 {
		body = append(body, load(dataNumber))
	}
	return append([]unix.SockFilter{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(r.call), Jf: uint8(len(body))}}, body...)
}

// assemble makes the instructions of one check, which jumps over rest more when it does not hold.
func (c check) assemble(rest int) []unix.SockFilter {
	jump := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: c.value, Jf: uint8(rest)}
	if c.not {
		jump.Jt, jump.Jf = jump.Jf, jump.Jt
	}
	return []unix.SockFilter{
		load(uint32(dataArgs + 8*c.arg)),
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.mask},
		jump,
	}
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func answer(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// Calls that only this machine has, beside those of seccomp.go.
var (
	forking    = []uintptr{unix.SYS_FORK, unix.SYS_VFORK}
	owningHere = []uintptr{unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN}
	neverHere  = []uintptr{unix.SYS_MODIFY_LDT, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_KEXEC_FILE_LOAD}
)

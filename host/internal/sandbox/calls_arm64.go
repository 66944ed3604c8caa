package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// Calls that only this machine has, beside those of seccomp.go.
var (
	forking    []uintptr
	owningHere []uintptr
	neverHere  = []uintptr{unix.SYS_KEXEC_FILE_LOAD}
)

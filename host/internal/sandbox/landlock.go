package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights to files. Those of the second group came with later kernels.
const (
	rightsRead    = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	rightsChange  = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	rightsSpecial = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	rightsMake    = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	rightsWrite = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | rightsChange | rightsMake

	// What a rule for something that is no folder may hold.
	rightsOfFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | rightsChange |
		unix.LANDLOCK_ACCESS_FS_IOCTL_DEV | unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX
)

const allScopes = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL

// stage is what a kernel can restrict, and what is missing without it.
type stage struct {
	abi    int
	adds   unix.LandlockRulesetAttr
	lacked string // "" where it is said otherwise
}

// stages of Landlock, see landlock(7).
var stages = []stage{
	{abi: 1, adds: unix.LandlockRulesetAttr{Handled_access_fs: (rightsRead | rightsWrite | rightsSpecial) &^
		(unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV)}},
	{abi: 2, adds: unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER}},
	{abi: 3, adds: unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		lacked: "it cannot keep the agent from truncating files (Linux 6.2)"},
	{abi: 4, adds: unix.LandlockRulesetAttr{Handled_access_net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
		lacked: "it cannot restrict TCP (Linux 6.7)"},
	{abi: 5, adds: unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}},
	{abi: 6, adds: unix.LandlockRulesetAttr{Scoped: allScopes},
		lacked: "it cannot keep the agent from abstract Unix sockets (Linux 6.12)"},
	{abi: 9, adds: unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX}},
	{abi: 10, adds: unix.LandlockRulesetAttr{Handled_access_net: unix.LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP}},
}

// restrict makes Landlock's rules of the policy and takes them on.
func (l *launcher) restrict() error {
	if l.Policy.Off {
		return nil
	}
	abi, err := landlockABI()
	if err != nil {
		return l.lacks("this kernel has no Landlock (%v): the agent can reach every file and port that its user can", err)
	}
	r := &ruleset{}
	for _, s := range stages {
		if s.abi <= abi {
			r.handled.Handled_access_fs |= s.adds.Handled_access_fs
			r.handled.Handled_access_net |= s.adds.Handled_access_net
			r.handled.Scoped |= s.adds.Scoped
		} else if s.lacked != "" {
			if err := l.lacks("this kernel's Landlock is of version %d: %s", abi, s.lacked); err != nil {
				return err
			}
		}
	}
	if err := r.create(); err != nil {
		return err
	}
	defer unix.Close(r.fd)
	if err := r.allow(l.Policy); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0); errno != 0 {
		return fmt.Errorf("taking on the rules of Landlock: %w", errno)
	}
	l.bound = true
	l.scoped = r.handled.Scoped&unix.LANDLOCK_SCOPE_SIGNAL != 0
	return nil
}

// landlockABI is the version that the kernel has.
func landlockABI() (int, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(version), nil
}

// ruleset under construction.
type ruleset struct {
	handled unix.LandlockRulesetAttr
	fd      int
}

// attributeSize is that of the fields in use. Kernels take a larger one with zeros than they know.
const attributeSize = unsafe.Offsetof(unix.LandlockRulesetAttr{}.Scoped) + unsafe.Sizeof(uint64(0))

func (r *ruleset) create() error {
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&r.handled)), attributeSize, 0)
	if errno != 0 {
		return fmt.Errorf("making rules for Landlock: %w", errno)
	}
	r.fd = int(fd)
	return nil
}

// allow adds what the policy says.
func (r *ruleset) allow(p Policy) error {
	for _, path := range slices.DeleteFunc(append(slices.Clone(p.Write), p.State, p.Temp), func(s string) bool { return s == "" }) {
		if err := r.path(path, rightsWrite); err != nil {
			return err
		}
	}
	for _, path := range p.Sockets {
		if err := r.missable(path, unix.LANDLOCK_ACCESS_FS_RESOLVE_UNIX); err != nil {
			return err
		}
	}
	for _, path := range slices.Concat(p.Program, p.Read) {
		if err := r.missable(path, rightsRead); err != nil {
			return err
		}
	}
	for _, path := range systemDevices() {
		if err := r.missable(path, unix.LANDLOCK_ACCESS_FS_READ_FILE|rightsChange); err != nil {
			return err
		}
	}
	for _, path := range systemFiles() {
		if err := r.missable(path, rightsRead); err != nil {
			return err
		}
	}
	return r.allowPorts(p)
}

func (r *ruleset) allowPorts(p Policy) error {
	for _, one := range []struct {
		ports []uint16
		right uint64
	}{
		{p.Connect, unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
		{p.Listen, unix.LANDLOCK_ACCESS_NET_BIND_TCP},
		{p.DatagramPorts, unix.LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP},
	} {
		for _, port := range one.ports {
			if err := r.port(port, one.right); err != nil {
				return err
			}
		}
	}
	return nil
}

// missable is path for what need not be there.
func (r *ruleset) missable(path string, rights uint64) error {
	err := r.path(path, rights)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// path allows rights below a folder, or to a file.
func (r *ruleset) path(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "opening", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return &os.PathError{Op: "looking at", Path: path, Err: err}
	}
	if info.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= rightsOfFiles
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled.Handled_access_fs, Parent_fd: int32(fd)}
	if attr.Allowed_access == 0 {
		return nil
	}
	if err := r.add(unix.LANDLOCK_RULE_PATH_BENEATH, unsafe.Pointer(&attr)); err != nil {
		return &os.PathError{Op: "allowing", Path: path, Err: err}
	}
	return nil
}

// portAttr is struct landlock_net_port_attr.
type portAttr struct{ access, port uint64 }

// portRule is LANDLOCK_RULE_NET_PORT.
const portRule = 2

func (r *ruleset) port(port uint16, right uint64) error {
	attr := portAttr{access: right & r.handled.Handled_access_net, port: uint64(port)}
	if attr.access == 0 {
		return nil
	}
	if err := r.add(portRule, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("allowing port %d: %w", port, err)
	}
	return nil
}

func (r *ruleset) add(kind uintptr, attr unsafe.Pointer) error {
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), kind, uintptr(attr), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// systemDevices are harmless to read and write.
func systemDevices() []string {
	return []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}
}

// systemFiles are what any program needs to run, in whatever language: programs and libraries of the system, the
// loader's cache, names of hosts, certificates, time zones, and what the kernel tells of the machine.
func systemFiles() []string {
	return []string{
		"/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin",
		"/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec", "/usr/bin", "/usr/sbin", "/usr/share",
		"/usr/local/lib", "/usr/local/lib64", "/usr/local/bin", "/usr/local/sbin", "/usr/local/share", "/nix/store",
		"/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
		"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf",
		"/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/passwd", "/etc/group", "/etc/mime.types",
		"/etc/localtime", "/etc/timezone", "/etc/locale.alias", "/etc/locale.conf",
		"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/ssl/ca-bundle.pem", "/etc/ca-certificates",
		"/etc/pki/tls/certs", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust", "/etc/crypto-policies",
		"/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version", "/proc/filesystems",
		"/proc/self", "/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/net/core/somaxconn",
		"/sys/devices/system/cpu", "/sys/kernel/mm/transparent_hugepage", "/sys/fs/cgroup",
	}
}

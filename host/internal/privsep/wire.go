package privsep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/sandbox"
)

// Kinds of requests.
const (
	kindStart  = "start"  // a process of an agent; descriptors: those of the process, and its folder for temporary files
	kindSignal = "signal" // to the group of a process
	kindDial   = "dial"   // the socket of a process, below its folder for temporary files; answered with a descriptor
	kindHost   = "host"   // another host, to take over; descriptor: its end of the channel
	kindMain   = "main"   // the host that asks is the service from now on
)

// request of a host.
type request struct {
	ID      uint64          `json:"id"` // not 0; of a start: also of the process
	Kind    string          `json:"kind"`
	Args    []string        `json:"args,omitempty"` // the program first
	Env     []string        `json:"env,omitempty"`
	Policy  *sandbox.Policy `json:"policy,omitempty"`
	Process uint64          `json:"process,omitempty"`
	Signal  int             `json:"signal,omitempty"`
	Path    string          `json:"path,omitempty"` // of a socket, below the process's folder for temporary files
}

// answer of the parent: one to each request, and one more with Exit at the end of each process.
type answer struct {
	ID       uint64   `json:"id"`
	Error    string   `json:"error,omitempty"`
	PID      int      `json:"pid,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Limits   string   `json:"limits,omitempty"` // of a process that was started, in words
	Exit     *Exit    `json:"exit,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Text   string `json:"text"` // as os.ProcessState says it
	Status uint32 `json:"status"`
	Why    string `json:"why,omitempty"` // the parent has ended it

	Shortage cgroup.Shortage `json:"shortage,omitempty"` // of memory, for which the kernel has ended it
}

const (
	maxPacket      = 128 << 10 // octets
	maxDescriptors = 6
	agentFiles     = 5 // standard input to error, lifeline and side socket
)

// packets is one end of the pair.
type packets struct{ conn *net.UnixConn }

// newPair makes both ends. theirs is for a process to be started.
func newPair() (ours packets, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ours, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	theirs = os.NewFile(uintptr(pair[1]), "link")
	ours, err = packetsOf(os.NewFile(uintptr(pair[0]), "link"))
	if err != nil {
		return ours, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// packetsOf makes an end of a descriptor, which it closes.
func packetsOf(file *os.File) (packets, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return packets{}, err
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return packets{}, errors.Join(errors.New("not a unix socket"), conn.Close())
	}
	return packets{socket}, nil
}

func (p packets) send(v any, files ...*os.File) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxPacket {
		return fmt.Errorf("%d octets of arguments and environment, %d can be passed on", len(text), maxPacket)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = p.conn.WriteMsgUnix(text, rights, nil)
	return err
}

// errPacket: what came is no request or answer. The next packet may be one.
var errPacket = errors.New("not understood")

// receive waits for a packet. The files are the caller's, also with an error.
func (p packets) receive(v any) (files []*os.File, err error) {
	text, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxDescriptors*4))
	n, rn, flags, _, err := p.conn.ReadMsgUnix(text, rights)
	files = received(rights[:rn])
	switch {
	case err != nil:
		return files, err
	case n == 0:
		return files, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return files, fmt.Errorf("%w: too large", errPacket)
	}
	decoder := json.NewDecoder(bytes.NewReader(text[:n]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return files, fmt.Errorf("%w: %w", errPacket, err)
	}
	return files, nil
}

// received are the descriptors of a packet. What cannot be read of them holds none: the kernel has written it.
func received(rights []byte) (files []*os.File) {
	messages, _ := unix.ParseSocketControlMessage(rights)
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

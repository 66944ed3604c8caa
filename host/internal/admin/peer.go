package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// peerKey is the context key of the uid at the other end.
type peerKey struct{}

// noPeer is the uid of a connection whose other end is not known, confined of one that is in an agent's sandbox.
const (
	noPeer   = -1
	confined = -2
)

// listenPrivate makes the socket under a name of its own, gives it its mode, and only then the name that
// clients know: at no moment can others connect, whatever the umask.
func listenPrivate(path string) (net.Listener, error) {
	folder, err := os.MkdirTemp(filepath.Dir(path), ".c")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	// sun_path is short: the folder is entered by a descriptor of it.
	handle, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	hidden := fmt.Sprintf("/proc/self/fd/%d/s", handle.Fd())
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(hidden, 0o600); err != nil {
		_ = listener.Close()
		return nil, err
	}
	if err := os.Rename(hidden, path); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return &unlinking{listener, path}, nil
}

// unlinking removes its socket when it is closed.
type unlinking struct {
	net.Listener
	path string
}

// Close implements net.Listener.
func (l *unlinking) Close() error {
	_ = os.Remove(l.path)
	return l.Listener.Close()
}

// withPeer notes who is at the other end.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(conn))
}

func peerOf(conn net.Conn) int {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return noPeer
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return noPeer
	}
	uid := noPeer
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
			if sandbox.Confined(int(cred.Pid)) {
				uid = confined
			}
		}
	})
	if err != nil {
		return noPeer
	}
	return uid
}

// onlyOwner refuses everybody but the user of the host and root. The mode of the socket says the same; this
// holds also where somebody has changed that.
func onlyOwner(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid := peer(r)
		if uid == confined {
			writeJSON(w, http.StatusForbidden, Problem{Error: "an agent may not control the host"})
			return
		}
		if !mayControl(uid) {
			writeJSON(w, http.StatusForbidden, Problem{
				Error: fmt.Sprintf("user %d may not control this host", uid),
				Hint:  fmt.Sprintf("run the command as root or as user %d", os.Geteuid()),
			})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func mayControl(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// by names the operator behind a request, for the ledger.
func by(r *http.Request) string {
	return fmt.Sprintf("operator (uid %d)", peer(r))
}

// peer is the uid at the other end of a request, noPeer where it is not known: 0 would be root.
func peer(r *http.Request) int {
	if uid, ok := r.Context().Value(peerKey{}).(int); ok {
		return uid
	}
	return noPeer
}

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clamd is the client of ClamAV's daemon. It keeps connections in sessions (IDSESSION), and hands over descriptors
// (FILDES) where it can.
type clamd struct {
	addresses []address // the first that somebody listens on
	transfer  string
	stream    atomic.Bool // with transfer auto: descriptors do not work here

	pool *pool
}

// address to dial.
type address struct{ network, name string }

// usual places of clamd's socket: Debian, Fedora and its kin, openSUSE and Arch; then TCP. None is in a folder that
// anybody may write to.
var usual = []address{
	{"unix", "/run/clamav/clamd.ctl"}, {"unix", "/run/clamd.scan/clamd.sock"}, {"unix", "/run/clamav/clamd.sock"},
	{"unix", "/run/clamav/clamd-socket"}, {"tcp", "127.0.0.1:3310"},
}

func newClamd(c Clamd, e Engine) *clamd {
	addresses := usual
	if c.Address != "" {
		addresses = []address{parseAddress(c.Address)}
	}
	client := &clamd{addresses: addresses, transfer: c.Transfer}
	client.pool = &pool{max: e.MaxConnections, dial: client.dial}
	return client
}

// parseAddress of "unix:/path", "/path", "tcp:host:port" or "host:port".
func parseAddress(text string) address {
	if path, ok := strings.CutPrefix(text, "unix:"); ok || strings.HasPrefix(text, "/") {
		return address{"unix", path}
	}
	return address{"tcp", strings.TrimPrefix(text, "tcp:")}
}

// checkAddress of a configuration.
func checkAddress(c Clamd) error {
	if c.Address == "" {
		return nil
	}
	a := parseAddress(c.Address)
	if a.network == "unix" {
		if !strings.HasPrefix(a.name, "/") {
			return fmt.Errorf("%q is no path of a socket", a.name)
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(a.name); err != nil || port == "" {
		return fmt.Errorf("%q is neither unix:/path nor host:port", c.Address)
	}
	if c.Transfer == "fildes" {
		return errors.New("descriptors can be handed over on a Unix socket only")
	}
	return nil
}

// dial the first address that answers. Where one exists and does not answer, clamd is down; where none does, or none may
// be reached, it is absent.
func (c *clamd) dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	var down, kept error
	for _, a := range c.addresses {
		conn, err := dialer.DialContext(ctx, a.network, a.name)
		if err == nil {
			_, err = conn.Write([]byte("zIDSESSION\x00"))
			return conn, err
		}
		switch nobody := errors.Is(err, fs.ErrNotExist) || a.network == "tcp" && errors.Is(err, syscall.ECONNREFUSED); {
		case len(c.addresses) == 1:
			return nil, err
		case errors.Is(err, fs.ErrPermission):
			kept = plainly(err)
		case !nobody:
			down = errors.Join(down, err)
		}
	}
	switch {
	case down != nil:
		return nil, down
	case kept != nil:
		return nil, fmt.Errorf("%w (%w)", errAbsent, kept)
	}
	return nil, errAbsent
}

// close implements engine.
func (c *clamd) close() { c.pool.close() }

// command sends something and reads the reply.
func (c *clamd) command(ctx context.Context, send func(*connection) error) (reply string, err error) {
	err = c.pool.talk(ctx, func(conn *connection) (again bool, err error) {
		reply, again, err = exchange(conn, send)
		return again, err
	})
	return reply, err
}

// exchange a command for a reply. Where clamd refuses before it has read everything, its reply is there all the same.
func exchange(conn *connection, send func(*connection) error) (reply string, again bool, err error) {
	sent := send(conn)
	if errors.Is(sent, errRefused) {
		return "", false, sent
	}
	text, err := conn.in.ReadSlice(0)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", false, errors.New("an endless answer")
	case err != nil && sent != nil:
		return "", false, sent
	case errors.Is(err, io.EOF):
		return "", false, errors.New("the connection ended without an answer")
	case err != nil:
		return "", false, err
	}
	reply = string(text[:len(text)-1])
	id, numbered, ok := strings.Cut(reply, ": ")
	if !ok || strings.Trim(id, "0123456789") != "" {
		return reply, false, nil // it answers no command of the session: a refusal
	}
	return numbered, sent == nil && !strings.HasSuffix(numbered, "ERROR"), nil
}

// scan implements engine.
func (c *clamd) scan(ctx context.Context, o *object) (malware string, err error) {
	if c.transfer == "instream" || c.stream.Load() {
		return c.told(ctx, instream(o))
	}
	malware, err = c.told(ctx, fildes(o))
	if c.transfer == "fildes" || err == nil || ctx.Err() != nil || !errors.Is(err, errRefused) {
		return malware, err
	}
	// It speaks, but takes no descriptor: built without, on TCP, or kept from it by a security module.
	if malware, err = c.told(ctx, instream(o)); err == nil {
		c.stream.Store(true)
	}
	return malware, err
}

// instream sends the octets in chunks with their lengths.
func instream(o *object) func(*connection) error {
	return func(conn *connection) error {
		if _, err := conn.Write([]byte("zINSTREAM\x00")); err != nil {
			return err
		}
		in, chunk := o.open(), make([]byte, 4+64<<10)
		for {
			n, err := io.ReadFull(in, chunk[4:])
			binary.BigEndian.PutUint32(chunk, uint32(n)) // 0 ends the stream
			if _, err := conn.Write(chunk[:4+n]); err != nil {
				return err
			}
			switch {
			case n == 0 && errors.Is(err, io.EOF):
				return nil
			case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
				return err
			}
		}
	}
}

// fildes hands over a descriptor.
func fildes(o *object) func(*connection) error {
	return func(conn *connection) error {
		unixConn, ok := conn.Conn.(*net.UnixConn)
		if !ok {
			return errRefused
		}
		file, err := o.descriptor()
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte("zFILDES\x00")); err != nil {
			return err
		}
		_, _, err = unixConn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(file.Fd())), nil)
		return err
	}
}

// errRefused: clamd answers, but not with a verdict.
var errRefused = errors.New("clamd refuses")

// told what clamd says about an object.
func (c *clamd) told(ctx context.Context, send func(*connection) error) (malware string, err error) {
	reply, err := c.command(ctx, send)
	if err != nil {
		return "", err
	}
	return parseVerdict(reply)
}

// limitPrefix of the names under which clamd (AlertExceedsMax) says that it has not looked at everything.
const limitPrefix = "Heuristics.Limits.Exceeded"

// parseVerdict of "stream: OK", "fd[9]: Name FOUND" or "... ERROR".
func parseVerdict(reply string) (malware string, err error) {
	_, verdict, ok := strings.Cut(reply, ": ")
	name, found := strings.CutSuffix(verdict, " FOUND")
	switch {
	case strings.Contains(reply, "size limit exceeded"):
		return "", errTooLarge
	case ok && found && strings.HasPrefix(name, limitPrefix):
		return "", errTooLarge
	case ok && found && name != "":
		return name, nil
	case ok && verdict == "OK":
		return "", nil
	case strings.HasSuffix(reply, "ERROR"), reply == "UNKNOWN COMMAND", reply == "COMMAND UNAVAILABLE":
		return "", fmt.Errorf("%w: %s", errRefused, clip(reply, maxName))
	}
	return "", fmt.Errorf("cannot be understood: %s", clip(reply, maxName))
}

// version implements engine: "ClamAV 1.4.6/27800/Tue Nov 17 08:28:40 2026", the last being the time of the signatures.
func (c *clamd) version(ctx context.Context) (version, error) {
	reply, err := c.command(ctx, func(conn *connection) error {
		_, err := conn.Write([]byte("zVERSION\x00"))
		return err
	})
	if err != nil {
		return version{}, err
	}
	return parseVersion(reply), nil
}

var versionText = regexp.MustCompile(`^ClamAV [^/]{1,40}(/[0-9]+)?`)

func parseVersion(reply string) version {
	text := versionText.FindString(reply) // "" where clamd does not want to tell: COMMAND UNAVAILABLE
	parts := strings.Split(reply, "/")
	if text == "" || len(parts) < 3 {
		return version{text: clip(text, maxName)}
	}
	signatures, err := time.Parse(time.ANSIC, parts[len(parts)-1])
	if err != nil {
		return version{text: clip(text, maxName)}
	}
	return version{text: clip(text, maxName), signatures: signatures}
}

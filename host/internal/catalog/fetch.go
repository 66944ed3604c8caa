package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// fetchPatience is how long a download may take.
const fetchPatience = 10 * time.Minute

// fetched is a file that is to be unpacked.
type fetched struct {
	path   string
	name   string // what a program would be called
	remove bool   // it is a copy
}

// fetch finds a source: a path, a file: URL, or an http: or https: URL of a server on this machine or the local
// network. Programs are brought to an edge server, not looked for by it: it asks nobody on the internet for them.
func fetch(ctx context.Context, source, to string) (fetched, error) {
	u, err := url.Parse(source)
	if err != nil || u.Scheme == "" || !strings.Contains(source, ":/") {
		return local(source)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return fetched{}, fmt.Errorf("a file: URL names no other machine than this one, and here is %q", u.Host)
		}
		return local(u.Path)
	case "http", "https":
		return fetched{to, programName(u.Path), true}, download(ctx, u, to)
	}
	return fetched{}, fmt.Errorf("%q is none of file, http and https", u.Scheme)
}

func local(name string) (fetched, error) {
	info, err := os.Stat(name)
	if err != nil {
		return fetched{}, errors.Unwrap(err)
	}
	if info.Size() > maxFetched {
		return fetched{}, errTooMuch
	}
	return fetched{name, programName(filepath.ToSlash(name)), false}, nil
}

var errTooMuch = fmt.Errorf("it has more than %d MiB", maxFetched>>20)

// programName is what a program is called in the catalog: as in the path that it came from, where that has a usable name.
func programName(p string) string {
	name := path.Base(p)
	if local, err := localName(name); err == nil {
		return local
	}
	return "agent"
}

func download(ctx context.Context, u *url.URL, to string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, Control: onlyNear}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, Proxy: nil}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answered %s", response.Status)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(response.Body, maxFetched+1))
	if err == nil && n > maxFetched {
		err = errTooMuch
	}
	return errors.Join(err, f.Close())
}

// onlyNear refuses addresses that are not of this machine or of a private or local network: also where a name or a
// redirection leads to.
func onlyNear(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := a.Addr().Unmap(); !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast() {
		return fmt.Errorf("%s is not on this machine or a local network; download it first, and install the file", ip)
	}
	return nil
}

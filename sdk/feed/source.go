package feed

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/posternmail/postern/sdk"
)

// Source of a feed: a block of the agent's configuration.
type Source struct {
	Name      string        `hcl:"name,label"`
	Directory string        `hcl:"directory,optional" format:"path" doc:"Folder with NAME.tar.gz and NAME.tar.gz.minisig, where NAME is the label of the block. It must be there when the agent starts."`
	URL       string        `hcl:"url,optional" doc:"Instead of a folder: the bundle, https. Its signature is at the same address with .minisig behind it. Needs connect = [\"tcp:443\"] in the agent's sandbox block." example:"\"https://feeds.example/ip-lists.tar.gz\""`
	Keys      []Key         `hcl:"keys" doc:"Public keys of minisign. A bundle must be signed by one of them." example:"[\"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\"]"`
	Every     time.Duration `hcl:"every,optional" default:"1h" min:"1s" max:"30d" doc:"How often the source is looked at. One out of reach is tried again after five minutes, if that is sooner."`
	Timeout   time.Duration `hcl:"timeout,optional" default:"1m" min:"1s" max:"1h" doc:"How long a look may take in all."`
	MaxSize   sdk.Size      `hcl:"max_size,optional" default:"32MB" min:"1KB" max:"256MB" doc:"Of a bundle, packed and unpacked."`
	CA        string        `hcl:"ca,optional" format:"path" doc:"PEM file of the authorities that the server's certificate may be by. If not given: the system's."`
}

func (s Source) check(r *sdk.Registrar, block string, i int) error {
	var errs []error
	if !isName(s.Name) {
		errs = append(errs, r.At(block, i).Errorf("%q is no name of a feed: a-z, 0-9, - and _, up to %d", s.Name, maxName))
	}
	if (s.Directory == "") == (s.URL == "") {
		errs = append(errs, r.At(block, i).Errorf("a feed has either a directory or a url"))
	}
	if len(s.Keys) == 0 {
		errs = append(errs, r.At(block, i, "keys").Errorf("without a key no bundle can be trusted"))
	}
	if u, err := url.Parse(s.URL); s.URL != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		errs = append(errs, r.At(block, i, "url").Errorf("%q is no address that begins with https://", s.URL))
	}
	if _, err := s.authorities(); err != nil {
		errs = append(errs, r.At(block, i, "ca").Error(err))
	}
	return errors.Join(errs...)
}

// authorities that the server's certificate may be by; nil are the system's.
func (s Source) authorities() (*x509.CertPool, error) {
	if s.CA == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", s.CA)
	}
	return pool, nil
}

// digest tells one source from another.
func (s Source) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q", s.Directory, s.URL)
	for _, k := range s.Keys {
		fmt.Fprintf(h, " %s", k)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// fetched is what a source has.
type fetched struct {
	archive, signature []byte
	seen               string // digest of the signature
	etag               string // of the signature, by HTTPS
	unchanged          bool   // it is what was seen before; all else is empty
}

// fetch what the source has, unless its signature is the one seen before.
func (s Source) fetch(ctx context.Context, etag, seen string) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	var got fetched
	var err error
	if s.Directory != "" {
		got, err = s.read(seen)
	} else {
		got, err = s.download(ctx, etag, seen)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return got, fmt.Errorf("no answer, or not all of it, within %s", s.Timeout)
	}
	return got, err
}

// read the folder.
func (s Source) read(seen string) (got fetched, err error) {
	path := filepath.Join(s.Directory, archiveName(s.Name))
	if got.signature, err = readFile(path+signatureSuffix, maxSignature); err != nil {
		return got, err
	}
	if got.seen = digestOf(got.signature); got.seen == seen {
		return fetched{unchanged: true}, nil
	}
	got.archive, err = readFile(path, int64(s.MaxSize))
	return got, err
}

// readFile reads a plain file of up to limit octets. What would block, as a pipe does, is none.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	return readUpTo(f, limit, path)
}

func readUpTo(r io.Reader, limit int64, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d octets", name, limit)
	}
	return b, nil
}

func digestOf(signature []byte) string {
	sum := sha256.Sum256(signature)
	return hex.EncodeToString(sum[:])
}

// download by HTTPS: the signature, and if that is a new one the bundle.
func (s Source) download(ctx context.Context, etag, seen string) (got fetched, err error) {
	client, err := s.client()
	if err != nil {
		return got, err
	}
	defer client.CloseIdleConnections()
	if got.signature, got.etag, err = get(ctx, client, s.URL+signatureSuffix, etag, maxSignature); err != nil {
		return got, err
	}
	got.seen = digestOf(got.signature)
	if got.signature == nil || got.seen == seen {
		return fetched{unchanged: true}, nil
	}
	got.archive, _, err = get(ctx, client, s.URL, "", int64(s.MaxSize))
	return got, err
}

// maxRedirects that are followed, all to https.
const maxRedirects = 5

func (s Source) client() (*http.Client, error) {
	pool, err := s.authorities()
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:              http.ProxyFromEnvironment,
			TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
			DisableCompression: true, // the octets that were signed
			ForceAttemptHTTP2:  true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != "https" || len(via) > maxRedirects {
				return fmt.Errorf("redirected to %s, after %d redirects", r.URL.Redacted(), len(via)-1)
			}
			return nil
		},
	}, nil
}

// get a resource of up to limit octets. It is nil if it is still the one with that etag (RFC 9110 section 13.1.2).
func get(ctx context.Context, client *http.Client, address, etag string, limit int64) (octets []byte, newTag string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", err
	}
	request.Header.Set("User-Agent", "Postern/"+sdk.Version)
	if etag != "" {
		request.Header.Set("If-None-Match", etag)
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, "", err // it names the address
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusNotModified && etag != "":
		return nil, etag, nil
	case answer.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("%s answers %s", address, strings.TrimSpace(answer.Status))
	case answer.ContentLength > limit:
		return nil, "", fmt.Errorf("%s has %d octets, more than %d", address, answer.ContentLength, limit)
	}
	octets, err = readUpTo(answer.Body, limit, address)
	if tag := answer.Header.Get("ETag"); len(tag) <= maxName {
		newTag = tag
	}
	return octets, newTag, err
}

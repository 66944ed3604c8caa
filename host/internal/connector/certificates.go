package connector

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
)

// certificatePoll is how often Watch looks at the files.
const certificatePoll = 5 * time.Second

// selfSignedFor is how long a certificate of our own making is good.
const selfSignedFor = 10 * 365 * 24 * time.Hour

// Certificates are those of the tls blocks. They are read again when their files change.
type Certificates struct {
	logger hclog.Logger
	pairs  map[string]*pair
}

// pair is one certificate with its key.
type pair struct {
	config.TLS
	current atomic.Pointer[tls.Certificate]
	stamp   [2]time.Time
}

// LoadCertificates reads the certificates of all tls blocks. For a block without files a self-signed certificate is made
// in the data directory, once.
func LoadCertificates(c *config.Config, logger hclog.Logger) (*Certificates, error) {
	all := &Certificates{logger: logger, pairs: map[string]*pair{}}
	for name, block := range c.TLS {
		if block.Certificate == "" {
			made, err := selfSigned(block, c.Host)
			if err != nil {
				return nil, fmt.Errorf("tls %q: %w", name, err)
			}
			block = made
		}
		p := &pair{TLS: block}
		if err := p.load(); err != nil {
			return nil, fmt.Errorf("tls %q: %w", name, err)
		}
		all.pairs[name] = p
	}
	return all, nil
}

// Config is the server side of the tls block of a name; nil when there is none.
func (c *Certificates) Config(name string) *tls.Config {
	p := c.pairs[name]
	if p == nil {
		return nil
	}
	t := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil },
	}
	if p.MinVersion == "1.3" {
		t.MinVersion = tls.VersionTLS13
	}
	return t
}

// Watch reads certificates again when their files change, until ctx ends. One that cannot be read leaves the one before.
func (c *Certificates) Watch(ctx context.Context) {
	ticker := time.NewTicker(certificatePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.Reload()
		}
	}
}

// Reload reads the certificates whose files have changed.
func (c *Certificates) Reload() {
	for name, p := range c.pairs {
		stamp := p.stamps()
		if stamp == p.stamp {
			continue
		}
		if err := p.load(); err != nil {
			// Half of a pair may have been written so far: look again.
			c.logger.Error("certificate not read again; the one before stays", "tls", name, "error", err)
			continue
		}
		c.logger.Info("certificate read again", "tls", name, "not_after", p.current.Load().Leaf.NotAfter)
	}
}

func (p *pair) stamps() (stamp [2]time.Time) {
	for i, path := range []string{p.Certificate, p.Key} {
		if info, err := os.Stat(path); err == nil {
			stamp[i] = info.ModTime()
		}
	}
	return stamp
}

func (p *pair) load() error {
	stamp := p.stamps()
	cert, err := tls.LoadX509KeyPair(p.Certificate, p.Key)
	if err != nil {
		return fmt.Errorf("reading certificate: %w", err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("reading certificate %s: %w", p.Certificate, err)
		}
	}
	p.current.Store(&cert)
	p.stamp = stamp
	return nil
}

// selfSigned finds the certificate of our own making, or makes it.
func selfSigned(block config.TLS, h config.Host) (config.TLS, error) {
	dir := filepath.Join(h.DataDir, "tls")
	block.Certificate = filepath.Join(dir, block.Name+".crt")
	block.Key = filepath.Join(dir, block.Name+".key")
	if _, err := os.Stat(block.Certificate); err == nil {
		return block, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return block, fmt.Errorf("making folder for the certificate: %w", err)
	}
	certificate, key, err := newCertificate(h.Name)
	if err != nil {
		return block, err
	}
	// The key first: a certificate that is there has its key.
	err = errors.Join(os.WriteFile(block.Key, key, 0o600), os.WriteFile(block.Certificate, certificate, 0o644))
	if err != nil {
		return block, fmt.Errorf("writing self-signed certificate: %w", err)
	}
	return block, nil
}

// newCertificate makes a self-signed certificate for a host, in PEM.
func newCertificate(host string) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("making serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedFor),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, fmt.Errorf("signing certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("writing key: %w", err)
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return certificate, key, nil
}

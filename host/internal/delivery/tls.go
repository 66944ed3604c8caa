package delivery

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// needsTLS reports whether nothing goes through c in the clear.
func (c *connector) needsTLS() bool {
	return c.RequireTLS || c.TLSAuth == "encryption" || c.verifiesChain()
}

func (c *connector) verifiesChain() bool { return c.TLSAuth == "certificate" || c.verifiesName() }

func (c *connector) verifiesName() bool { return c.TLSAuth == "domain" }

// loadCAs reads the connector's own authorities; nil are the system's.
func loadCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}

// tlsConfig for one handshake. With verify the certificate must be the next hop's, whatever the connector says
// (RFC 8689 section 4.2.1).
func (c *connector) tlsConfig(cl *client, verify bool) *tls.Config {
	t := cl.target
	name, chain := c.verifiesName() || verify, c.verifiesChain() || verify
	cfg := &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it, as far as the connector wants
		MinVersion:         tls.VersionTLS12,
	}
	if !c.needsTLS() && !verify {
		cfg.MinVersion = tls.VersionTLS10 // old encryption is better than none
	}
	if _, err := netip.ParseAddr(t.host); err != nil {
		cfg.ServerName = strings.TrimSuffix(t.host, ".")
	}
	if chain {
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			return c.verify(cl, state, name)
		}
	}
	return cfg
}

// verify checks the chain of the certificate, and with name whose it is.
func (c *connector) verify(cl *client, state tls.ConnectionState, name bool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	leaf := state.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: c.roots, Intermediates: x509.NewCertPool()}
	for _, cert := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	if !name {
		return nil
	}
	if err := c.verifyName(leaf, cl.target); err != nil {
		return err
	}
	cl.verified = true
	return nil
}

// verifyName wants tls_domain where it is given; else the smart host's name, or the domain that was routed. What DNS
// said the MX is called counts only below that domain, since nothing protects the answer.
func (c *connector) verifyName(leaf *x509.Certificate, t target) error {
	want := c.TLSDomain
	if want == "" {
		want = t.domain
	}
	if want == "" {
		return leaf.VerifyHostname(trimHost(t.host, t.address))
	}
	err := leaf.VerifyHostname(want)
	if err != nil && strings.HasSuffix(strings.ToLower(t.host), "."+strings.ToLower(want)) {
		return leaf.VerifyHostname(t.host)
	}
	return err
}

// trimHost is the name, or for a smart host given by address that address.
func trimHost(host, address string) string {
	if host != "" {
		return strings.TrimSuffix(host, ".")
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	return ap.Addr().String()
}

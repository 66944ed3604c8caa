package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
)

func (l *loader) checkHost(n *node) {
	name := n.value("name")
	if s := n.str("name"); !name.bad && !strings.Contains(s, ".") {
		switch {
		case name.set:
			l.diags.warnf(name.at, "%q is not a fully qualified domain name; other servers may refuse it", s)
		case !l.broken:
			l.diags.warnf(n.at, "the system's name %q is not a fully qualified domain name; set name in host { }", s)
		}
	}
	if strings.HasPrefix(n.str("name"), "*") {
		l.diags.errorf(name.at, "the host needs one name, not a pattern")
	}
	l.checkDataDir(n)
	l.checkUser(n)
}

// checkDataDir looks at what is there already; the folder is made at the first start.
func (l *loader) checkDataDir(n *node) {
	v := n.value("data_dir")
	info, err := os.Stat(n.str("data_dir"))
	if err != nil || v.bad {
		return
	}
	if !info.IsDir() {
		l.diags.errorf(v.at, "data_dir %s is not a folder", n.str("data_dir"))
	} else if info.Mode().Perm()&0o002 != 0 {
		l.diags.warnf(v.at, "data_dir %s can be written by everybody; make it chmod 700", n.str("data_dir"))
	}
}

func (l *loader) checkServices() {
	if n := l.root.one("metrics"); n.set("listen") && !loopback(n.str("listen")) {
		l.diags.warnf(n.rangeOf("listen"), "the metrics can be read by everybody who reaches %s", n.str("listen"))
	}
	q := l.root.one("queue")
	if q.set("delay_notice") && q.duration("delay_notice") >= q.duration("expire_after") {
		l.diags.warnf(q.rangeOf("delay_notice"), "delay_notice is not before expire_after (%s), so no delay is ever reported", FormatDuration(q.duration("expire_after")))
	}
	if n := l.root.one("users"); n.present && n.set("file") {
		l.checkSecretFile(n, "file")
	}
}

// checkSecretFile wants a file that can be read, and warns when everybody else can too.
func (l *loader) checkSecretFile(n *node, name string) bool {
	if !l.checkReadable(n, name) {
		return false
	}
	if info, err := os.Stat(n.str(name)); err == nil && info.Mode().Perm()&0o004 != 0 {
		l.diags.warnf(n.rangeOf(name), "%s can be read by everybody; make it chmod 600", n.str(name))
	}
	return true
}

func (l *loader) checkReadable(n *node, name string) bool {
	v := n.value(name)
	if v.bad {
		return false
	}
	f, err := os.Open(n.str(name))
	if err != nil {
		l.diags.errorf(v.at, "%s cannot be read: %v", name, err)
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.IsDir() {
		l.diags.errorf(v.at, "%s: %s is a folder, not a file", name, n.str(name))
		return false
	}
	return true
}

// fileName is a name that may become the name of a file.
var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkName wants a label that can be written in a log line and asked for in a command.
func (l *loader) checkName(n *node) {
	switch name := n.label(); {
	case strings.TrimSpace(name) == "":
		l.diags.errorf(n.labelAt(), "%s needs a name that is not empty", n.typ.name)
	case len(name) > 64:
		l.diags.errorf(n.labelAt(), "the name has %d characters, at most 64", len(name))
	case checkLine(name) != nil:
		l.diags.errorf(n.labelAt(), "the name holds a control character")
	}
}

func (l *loader) checkTLS(n *node) {
	if name := n.label(); !fileName.MatchString(name) {
		l.diags.errorf(n.labelAt(), "%q is no name of a certificate: letters, digits, dots, hyphens and underscores, at most 64", name)
	}
	certificate, key := n.set("certificate"), n.set("key")
	switch {
	case certificate && !key && !n.value("key").bad:
		l.diags.errorf(n.rangeOf("certificate"), "certificate without key; give both, or neither for a self-signed one")
	case key && !certificate && !n.value("certificate").bad:
		l.diags.errorf(n.rangeOf("key"), "key without certificate; give both, or neither for a self-signed one")
	case certificate && key:
		l.checkKeyPair(n)
	}
}

func (l *loader) checkKeyPair(n *node) {
	readable := l.checkReadable(n, "certificate")
	if !l.checkSecretFile(n, "key") || !readable {
		return
	}
	certificates, err := os.ReadFile(n.str("certificate"))
	if err != nil {
		return // checkReadable has opened it just now
	}
	if _, err := leaf(certificates); err != nil {
		l.diags.errorf(n.rangeOf("certificate"), "certificate: %v", err)
		return
	}
	pair, err := tls.LoadX509KeyPair(n.str("certificate"), n.str("key"))
	if err != nil {
		l.diags.errorf(n.rangeOf("key"), "key: %s", strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	l.checkValidity(n, pair)
}

func (l *loader) checkValidity(n *node, pair tls.Certificate) {
	now := time.Now()
	switch at := n.rangeOf("certificate"); {
	case pair.Leaf == nil:
	case now.After(pair.Leaf.NotAfter):
		l.diags.warnf(at, "the certificate expired on %s", pair.Leaf.NotAfter.Format(time.DateOnly))
	case now.Before(pair.Leaf.NotBefore):
		l.diags.warnf(at, "the certificate is not valid before %s", pair.Leaf.NotBefore.Format(time.DateOnly))
	}
}

func (l *loader) checkDirectory(n *node) {
	l.checkName(n)
	if !n.set("file") || !l.checkReadable(n, "file") {
		return
	}
	switch strings.ToLower(filepath.Ext(n.str("file"))) {
	case ".csv", ".json":
	default:
		l.diags.errorf(n.rangeOf("file"), "the name of a directory file ends in .csv or .json")
	}
}

func (l *loader) checkReceiveConnector(n *node) {
	l.checkName(n)
	l.checkTLSReference(n)
	l.checkTLSUse(n)
	l.checkPermissions(n)
	n.each("listen", func(_ int, s string, at hcl.Range) {
		if addr, err := parseListen(s); err == nil && addr.Port() == 0 {
			l.diags.warnf(at, "port 0: the system chooses a port, another one at each start")
		}
	})
	limits := n.one("limits")
	if limits.set("max_header_size") && limits.number("max_header_size") > limits.number("max_message_size") && limits.number("max_message_size") > 0 {
		l.diags.errorf(limits.rangeOf("max_header_size"), "max_header_size is larger than max_message_size")
	}
	if limits.set("inactivity_timeout") && limits.duration("inactivity_timeout") > limits.duration("timeout") && limits.duration("timeout") > 0 {
		l.diags.warnf(limits.rangeOf("inactivity_timeout"), "inactivity_timeout is longer than timeout (%s), which ends the session before", FormatDuration(limits.duration("timeout")))
	}
}

func (l *loader) checkTLSReference(n *node) {
	if !n.set("tls") {
		return
	}
	var names []string
	for _, block := range l.root.all("tls") {
		names = append(names, block.label())
	}
	if name := n.str("tls"); !slices.Contains(names, name) && !l.broken {
		near := Suggestion(name, names)
		if near == "" && len(names) == 0 {
			near = fmt.Sprintf("; add tls %q { }", name)
		}
		l.diags.errorf(n.rangeOf("tls"), "there is no tls block %q%s", name, near)
	}
}

func (l *loader) checkTLSUse(n *node) {
	if n.set("tls") || n.value("tls").bad {
		return
	}
	for _, name := range []string{"implicit_tls", "require_tls"} {
		if n.flag(name) {
			l.diags.errorf(n.rangeOf(name), "%s without tls", name)
		}
	}
	n.each("listen", func(_ int, s string, at hcl.Range) {
		if !loopback(s) {
			l.diags.warnf(at, "%s listens on %s without TLS: mail crosses the network in the clear", n.title(), s)
		}
	})
}

func (l *loader) checkPermissions(n *node) {
	permissions := n.strs("permissions")
	n.each("permissions", func(_ int, s string, at hcl.Range) {
		switch s {
		case "partners":
			l.diags.errorf(at, `permission "partners" is not supported yet in this version`)
		case "users":
			l.checkUsersPermission(n, at)
		case "own_servers":
			l.checkOwnServers(n, permissions, at)
		}
	})
}

func (l *loader) checkUsersPermission(n *node, at hcl.Range) {
	if !l.root.one("users").present && !l.broken {
		l.diags.warnf(at, "nobody can log in: there is no users block")
	}
	if !n.set("tls") && !n.value("tls").bad {
		l.diags.warnf(at, "nobody can log in: AUTH is offered over TLS only, and this connector has none")
	}
}

// checkOwnServers warns of what would let strangers relay: own servers may send anywhere without a password. They
// are told by their addresses, which a connector for everybody does not name.
func (l *loader) checkOwnServers(n *node, permissions []string, at hcl.Range) {
	if n.value("remote").bad {
		return
	}
	named := len(n.strs("remote")) > 0
	switch {
	case !named && len(l.config.Host.InternalSMTPServers) == 0:
		l.diags.warnf(at, "own_servers has no effect: no server is named in remote or in internal_smtp_servers of host")
	case named && slices.Contains(permissions, "anonymous"):
		l.diags.warnf(at, `every client of this connector is an own server, so "anonymous" beside it has no effect`)
	}
	l.warnOpenRelay(n, "remote")
	l.warnOpenRelay(l.root.one("host"), "internal_smtp_servers")
}

func (l *loader) warnOpenRelay(n *node, name string) {
	n.each(name, func(_ int, s string, at hcl.Range) {
		if prefix, err := parsePrefix(s); err == nil && tooWide(prefix) {
			l.diags.warnf(at, "open relay: with permission own_servers everybody in %s may send mail anywhere", s)
		}
	})
}

// tooWide prefixes hold more than an organization has.
func tooWide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16
}

func loopback(listen string) bool {
	addr, err := parseListen(listen)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

func (l *loader) checkSendConnector(n *node) {
	l.checkName(n)
	l.checkWayOut(n)
	l.checkDropDirectory(n)
	l.checkSendTLS(n)
	l.checkLogin(n)
	if n.set("source_ip") && parsedAddr(n.str("source_ip")).IsUnspecified() {
		l.diags.errorf(n.rangeOf("source_ip"), "source_ip %s is no address of its own; leave it out for the system's choice", n.str("source_ip"))
	}
	if n.set("tls_ca_file") && l.checkReadable(n, "tls_ca_file") {
		l.checkCAFile(n)
	}
}

func (l *loader) checkCAFile(n *node) {
	content, err := os.ReadFile(n.str("tls_ca_file"))
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(content) {
		l.diags.errorf(n.rangeOf("tls_ca_file"), "tls_ca_file holds no certificate in PEM form")
	}
}

var waysOut = []string{"smart_hosts", "dns", "lmtp", "drop_directory"}

// checkWayOut wants exactly one of the ways out.
func (l *loader) checkWayOut(n *node) {
	first := ""
	for _, name := range waysOut {
		v := n.value(name)
		if !v.set || (name == "dns" && !v.bad && !n.flag("dns")) {
			continue
		}
		if name == "smart_hosts" && !v.bad && len(n.strs(name)) == 0 {
			l.diags.errorf(v.at, "smart_hosts may not be empty")
		}
		if first != "" {
			l.diags.errorf(v.nameAt, "%s has %s already at %s; one of smart_hosts, dns, lmtp and drop_directory is allowed", n.title(), first, short(n.value(first).nameAt))
			continue
		}
		first = name
	}
	if first == "" && !l.broken {
		l.diags.errorf(n.at, "%s leads nowhere; give it smart_hosts, dns = true, lmtp or drop_directory", n.title())
	}
}

// checkDropDirectory looks at what is there already; the folder is made at the first delivery.
func (l *loader) checkDropDirectory(n *node) {
	v := n.value("drop_directory")
	if !v.set || v.bad {
		return
	}
	if info, err := os.Stat(n.str("drop_directory")); err == nil && !info.IsDir() {
		l.diags.errorf(v.at, "drop_directory %s is not a folder", n.str("drop_directory"))
	}
}

func (l *loader) checkSendTLS(n *node) {
	clash := func(a, b string) {
		if n.flag(a) && n.flag(b) {
			l.diags.errorf(n.rangeOf(b), "%s contradicts %s at %s", b, a, short(n.value(a).nameAt))
		}
	}
	clash("require_tls", "ignore_starttls")
	clash("require_tls", "force_helo")
	if n.set("tls_auth") && n.str("tls_auth") != "none" && n.flag("ignore_starttls") {
		l.diags.errorf(n.rangeOf("tls_auth"), "tls_auth contradicts ignore_starttls at %s", short(n.value("ignore_starttls").nameAt))
	}
	if n.set("tls_domain") && n.str("tls_auth") != "domain" && !n.value("tls_auth").bad {
		l.diags.errorf(n.rangeOf("tls_domain"), `tls_domain is used only with tls_auth = "domain"`)
	}
	for _, name := range []string{"require_tls", "force_helo", "username"} {
		if n.set(name) && (n.set("lmtp") || n.set("drop_directory")) && n.value(name).raw != false {
			l.diags.warnf(n.value(name).nameAt, "%s has no effect with lmtp or drop_directory", name)
		}
	}
}

func (l *loader) checkLogin(n *node) {
	user, password := n.set("username"), n.set("password")
	switch {
	case user && !password && !n.value("password").bad:
		l.diags.errorf(n.rangeOf("username"), "username without password")
	case password && !user && !n.value("username").bad:
		l.diags.errorf(n.value("password").nameAt, "password without username")
	case user && n.flag("dns"):
		l.diags.errorf(n.rangeOf("username"), "username is for smart_hosts; with dns every server would get the password")
	case user && !n.flag("require_tls") && n.str("tls_auth") == "none":
		l.diags.warnf(n.rangeOf("username"), "the password may go out in the clear; set require_tls = true")
	}
}

// leaf is the first certificate of a PEM file.
func leaf(content []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			return nil, errors.New("the file holds no certificate in PEM form")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
		content = rest
	}
}

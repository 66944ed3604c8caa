package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk/address"
)

// formatName is a format as a message calls it.
func formatName(f format) string {
	switch f {
	case formatDuration:
		return `a duration such as "90s"`
	case formatSize:
		return `a size such as "36 MB"`
	case formatPrefix:
		return "an IP address or prefix"
	case formatDomain:
		return "a domain name"
	case formatMailbox:
		return "a mail address"
	case formatRegexp:
		return "a regular expression"
	case formatPath:
		return "a path"
	case formatListen:
		return `an address to listen on such as "127.0.0.1:25" or "[::1]:25"`
	case formatHostPort:
		return `an address such as "127.0.0.1:53"`
	case formatSmartHost:
		return `a host such as "mx.example.org", "mx.example.org:587" or "[192.0.2.1]:25"`
	case formatLMTP:
		return `"unix:/path" or "host:port"`
	case formatAddress:
		return "an IP address"
	case formatAddressSpace:
		return `an address space such as "*", "example.org" or "*.example.org;10"`
	case formatUnixSocket:
		return `"unix:/path"`
	}
	return "a text"
}

// parse checks a text by the option's format and returns it as the configuration keeps it.
func (c *converter) parse(s string) (any, error) {
	switch c.option.format {
	case formatDuration:
		d, err := ParseDuration(s)
		return inHours(s, d), err
	case formatSize:
		n, err := ParseSize(s)
		return json.Number(strconv.FormatInt(n, 10)), err
	case formatPath:
		return c.path(s)
	case formatUnixSocket, formatLMTP:
		return c.socket(s)
	}
	return s, checkText(c.option.format, s)
}

func checkText(f format, s string) error {
	switch f {
	case formatPrefix:
		_, err := parsePrefix(s)
		return err
	case formatDomain:
		return checkDomain(s)
	case formatMailbox:
		return checkMailbox(s)
	case formatRegexp:
		_, err := regexp.Compile(s)
		return plainRegexpError(err)
	case formatListen:
		_, err := parseListen(s)
		return err
	case formatHostPort:
		return checkHostPort(s)
	case formatSmartHost:
		return checkSmartHost(s)
	case formatAddress:
		_, err := netip.ParseAddr(s)
		return plainNetError(err)
	case formatAddressSpace:
		_, err := parseAddressSpace(s)
		return err
	case formatText:
		return checkLine(s)
	}
	return nil
}

// path makes a relative path absolute to the file that names it.
func (c *converter) path(s string) (any, error) {
	if s == "" {
		return "", errors.New("empty")
	}
	if strings.ContainsRune(s, 0) {
		return "", errors.New("it holds a NUL")
	}
	return absolute(c.dir, s), nil
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

func (c *converter) socket(s string) (any, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		full, err := c.path(path)
		return "unix:" + fmt.Sprint(full), err
	}
	if c.option.format == formatUnixSocket {
		return s, errors.New(`it does not begin with "unix:"`)
	}
	return s, checkHostPort(s)
}

// parsePrefix takes an address as a prefix of its whole length, and wants the bits behind a prefix to be zero: who
// writes 10.1.2.3/8 may mean either.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, plainNetError(err)
		}
		if addr.Zone() != "" {
			return netip.Prefix{}, errors.New("an address with a zone is no prefix")
		}
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, plainNetError(err)
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, errors.New("write an IPv4 network as such")
	}
	if prefix.Masked() != prefix {
		return netip.Prefix{}, fmt.Errorf("bits are set behind the prefix; the network is %s", prefix.Masked())
	}
	return prefix, nil
}

// plainNetError drops the function name and the repeated input from an error of net/netip.
func plainNetError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if i := strings.LastIndex(text, "): "); i >= 0 {
		text = text[i+3:]
	} else if i := strings.LastIndex(text, `": `); i >= 0 {
		text = text[i+3:]
	}
	return errors.New(text)
}

func plainRegexpError(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
}

// checkDomain takes a domain name, "*.x" included.
func checkDomain(s string) error {
	name := strings.TrimPrefix(s, "*.")
	if strings.HasPrefix(name, "[") {
		return errors.New("an address literal is no domain name")
	}
	if strings.Contains(name, "*") {
		return errors.New(`"*" stands for whole labels in front only, as in "*.example.org"`)
	}
	_, err := address.ParseDomain(name)
	return plainAddressError(err)
}

// checkMailbox takes local@domain.
func checkMailbox(s string) error {
	mailbox, err := address.Parse(s)
	if err == nil && mailbox.Domain == "" {
		err = errors.New("no domain")
	}
	return plainAddressError(err)
}

// plainAddressError drops what the message around it says already.
func plainAddressError(err error) error {
	if errors.Is(err, address.ErrSyntax) {
		return errors.New(strings.TrimPrefix(err.Error(), address.ErrSyntax.Error()+": "))
	}
	return err
}

func checkLine(s string) error {
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("a control character at position %d", i+1)
	}
	return nil
}

// parseListen takes "ip:port"; no address before the colon is every address.
func parseListen(s string) (netip.AddrPort, error) {
	host, port, err := splitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an IP address", host)
	}
	return netip.AddrPortFrom(addr, port), nil
}

func splitHostPort(s string) (string, uint16, error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		var addrError *net.AddrError
		if errors.As(err, &addrError) {
			return "", 0, errors.New(addrError.Err)
		}
		return "", 0, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is not a number", text)
	}
	if port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("port %d is not between 1 and 65535", port)
	}
	return host, uint16(port), nil
}

func checkHostPort(s string) error {
	host, port, err := splitHostPort(s)
	if err != nil {
		return err
	}
	if port == 0 {
		return errors.New("port 0 is not between 1 and 65535")
	}
	return checkHost(host)
}

// checkHost takes an IP address or a domain name.
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" || strings.HasPrefix(host, "*") {
		return errors.New("no host")
	}
	if looksLikeIPv4(host) {
		return fmt.Errorf("%q is not an IP address", host)
	}
	return checkDomain(host)
}

// looksLikeIPv4 catches 10.0.0.300, which is a domain name by grammar.
func looksLikeIPv4(s string) bool { return strings.Trim(s, "0123456789.") == "" }

func checkSmartHost(s string) error {
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(s, "]") {
		_, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return plainNetError(err)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if strings.Contains(s, ":") {
		return checkHostPort(s)
	}
	return checkHost(s)
}

// parseAddressSpace takes "pattern" or "pattern;cost".
func parseAddressSpace(s string) (AddressSpace, error) {
	pattern, text, priced := strings.Cut(s, ";")
	space := AddressSpace{Pattern: strings.ToLower(strings.TrimSpace(pattern)), Cost: 1}
	if priced {
		cost, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || cost < 1 || cost > 100 {
			return space, fmt.Errorf("cost %q is not a number from 1 to 100", strings.TrimSpace(text))
		}
		space.Cost = cost
	}
	if space.Pattern == "*" {
		return space, nil
	}
	return space, checkDomain(space.Pattern)
}

// outOfBounds says which bound is broken, "" for none.
func (c *converter) outOfBounds(compare func(bound string) (int, error)) string {
	if c.option.min != "" {
		if order, err := compare(c.option.min); err == nil && order < 0 {
			return "at least " + c.bound(c.option.min)
		}
	}
	if c.option.max != "" {
		if order, err := compare(c.option.max); err == nil && order > 0 {
			return "at most " + c.bound(c.option.max)
		}
	}
	return ""
}

func (c *converter) bound(s string) string {
	if c.option.format == formatDuration || c.option.format == formatSize {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func compareNumber(f *big.Float, bound string) (int, error) {
	limit, _, err := big.ParseFloat(bound, 10, 512, big.ToNearestEven)
	if err != nil {
		return 0, err
	}
	return f.Cmp(limit), nil
}

// compareText orders durations and sizes; other texts have no bounds.
func (c *converter) compareText(s, bound string) (int, error) {
	switch c.option.format {
	case formatDuration:
		a, _ := ParseDuration(s)
		b, err := ParseDuration(bound)
		return cmp.Compare(a, b), err
	case formatSize:
		a, _ := ParseSize(s)
		b, err := ParseSize(bound)
		return cmp.Compare(a, b), err
	}
	return 0, nil
}

// parsedAddr is an address that was checked, the zero value for none.
func parsedAddr(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

package spf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// The suites of RFC 7208 and RFC 4408 run in plugins/senderauth, through a DNS server.

// texts is a Resolver that knows TXT records only; a nil entry is an error.
type texts map[string][]string

func (t texts) TXT(_ context.Context, name string) ([]string, error) {
	records, found := t[name]
	if found && records == nil {
		return nil, errors.New("timeout")
	}
	return records, nil
}
func (t texts) A(context.Context, string) ([]netip.Addr, error)    { return nil, nil }
func (t texts) AAAA(context.Context, string) ([]netip.Addr, error) { return nil, nil }
func (t texts) MX(context.Context, string) ([]net.MX, error)       { return nil, nil }
func (t texts) PTR(context.Context, netip.Addr) ([]string, error)  { return nil, nil }
func query(domain string) Query {
	return Query{
		IP: netip.MustParseAddr("192.0.2.7"), Helo: "mx.x.example", Sender: "a@" + domain, Domain: domain,
		Receiver: "edge.example", Now: time.Unix(7, 0),
	}
}

func TestCheck(t *testing.T) {
	zone := texts{
		"x.example":     {"v=spf1 ip4:192.0.2.0/24 -all"},
		"no.example":    {"v=spf1 -all exp=why.example"},
		"why.example":   {"%{i} is no sender of %{o}, says %{r} at %{t}"},
		"two.example":   {"v=spf1 -all", "v=spf1 +all"},
		"loop.example":  {"v=spf1 include:loop.example -all"},
		"void.example":  {"v=spf1 a:a.example.com a:b.example.com a:c.example.com -all"},
		"quiet.example": nil,
		"other.example": {"v=spf10 -all", "something"},
	}
	for domain, want := range map[string]Answer{
		"x.example":     {Pass, "ip4", ""},
		"no.example":    {Fail, "all", "192.0.2.7 is no sender of no.example, says edge.example at 7"},
		"two.example":   {PermError, "several records", ""},
		"loop.example":  {PermError, "too many DNS lookups", ""},
		"void.example":  {PermError, "too many DNS lookups without an answer", ""},
		"quiet.example": {TempError, "DNS lookup failed", ""},
		"other.example": {None, "no record", ""},
		"localhost":     {None, "no record", ""},
	} {
		if got := Check(t.Context(), zone, query(domain)); got != want {
			t.Errorf("%s: %+v, expected %+v", domain, got, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, r := range []string{
		"v=spf1 a:%{ir}.%{v}._spf.%{d2} -all", "v=spf1 mx//64 ptr exists:%{l1r+-}.x.example redirect=%{d}", "v=spf1 ip6:::1/0 exp=%{s}.x",
		"v=spf1 a/\n", // has ended the process
	} {
		f.Add(r, "local")
	}
	f.Fuzz(func(t *testing.T, record, local string) {
		q := query("x.example")
		q.Sender = local + "@x.example"
		Check(t.Context(), texts{"x.example": {record}}, q)
	})
}

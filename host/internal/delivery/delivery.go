// Package delivery takes items to their next hop through send connectors: SMTP, LMTP, a drop directory. One
// transaction gives one result per recipient.
package delivery

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
)

// Options of a Delivery.
type Options struct {
	Config   *config.Config
	Logger   hclog.Logger
	Timeouts Timeouts // zero fields are those of RFC 5321 section 4.5.3.2
}

// Result is what has become of one recipient in one attempt.
type Result struct {
	Index   int                     // of the recipient
	State   envelope.RecipientState // Pending: put off; Delivered, Relayed, Failed
	Reply   envelope.Reply          // of the next hop, or the host's own on its behalf
	Remote  string                  // "mx.example [192.0.2.1]:25", a path for a drop directory; "" none was reached
	TLS     string                  // "TLS 1.3 TLS_AES_128_GCM_SHA256", "" without
	InDoubt bool                    // the reply to the final dot was lost: the next hop may have it already
	Passed  bool                    // the next hop offers DSN: telling the sender is its task now (RFC 3461 section 5.2.1)
}

// Delivery delivers items. It is safe for concurrent use.
type Delivery struct {
	config     *config.Config
	log        hclog.Logger
	timeouts   Timeouts
	connectors map[string]*connector
	resolver   *resolver
	pool       *pool
	listening  map[netip.AddrPort]bool // our own receive connectors
}

// connector is a send connector ready for use.
type connector struct {
	config.SendConnector
	roots *x509.CertPool // nil: the system's
}

func (c *connector) inactivity() time.Duration {
	if c.Inactivity <= 0 {
		return 10 * time.Minute
	}
	return c.Inactivity
}

// New prepares the send connectors. The error names the one that cannot be used.
func New(o Options) (*Delivery, error) {
	d := &Delivery{
		config:     o.Config,
		log:        o.Logger,
		timeouts:   o.Timeouts.withDefaults(),
		connectors: map[string]*connector{},
		resolver:   newResolver(o.Config.DNS),
		pool:       newPool(),
	}
	d.listening = d.listeners()
	for i := range o.Config.SendConnectors {
		c := &connector{SendConnector: o.Config.SendConnectors[i]}
		var err error
		if c.roots, err = loadCAs(c.TLSCAFile); err != nil {
			return nil, fmt.Errorf("send connector %q: %w", c.Name, err)
		}
		d.connectors[c.Name] = c
	}
	return d, nil
}

// Close ends idle connections. Deliveries still under way end theirs themselves.
func (d *Delivery) Close() { d.pool.close() }

// Knows reports whether the Hop of a routed item is still the way of all its pending recipients: its send connector
// exists and has the target that it had. An item of another way is to be categorized again.
func (d *Delivery) Knows(item *queue.Item) bool {
	name, _ := SplitHop(item.Hop)
	c := d.connectors[name]
	if c == nil {
		return false
	}
	for _, r := range pending(item) {
		if c.Hop(cmp.Or(r.Route, r.Address.Domain)) != item.Hop {
			return false
		}
	}
	return true
}

// SplitHop takes an item's Hop apart: the name of the send connector and the next-hop domain or host.
func SplitHop(hop string) (connector, next string) {
	// A connector's name may hold a slash, what follows it never does.
	i := strings.LastIndexByte(hop, '/')
	if i < 0 {
		return hop, ""
	}
	return hop[:i], hop[i+1:]
}

// Deliver makes one attempt at all pending recipients of item, which is not changed, and answers with one
// Result for each, in their order. It ends early, with the recipients put off, when ctx does.
func (d *Delivery) Deliver(ctx context.Context, item *queue.Item) []Result {
	name, _ := SplitHop(item.Hop)
	c := d.connectors[name]
	switch {
	case c == nil:
		return all(item, envelope.Pending, reply(451, "4.3.5", fmt.Sprintf("send connector %q is not configured any more", name)))
	case c.DropDirectory != "":
		return d.drop(c, d.traced(item))
	}
	return d.send(ctx, c, d.traced(item))
}

// traced is the item as it goes out: with a field that names the agents that were skipped, where that is wanted.
func (d *Delivery) traced(item *queue.Item) *queue.Item {
	names := skipped(item)
	if !d.config.Host.SkippedHeader || len(names) == 0 {
		return item
	}
	traced := *item
	traced.Prefix = slices.Concat(item.Prefix, []byte("X-Postern-Skipped: "+strings.Join(names, ",\r\n\t")+"\r\n"))
	return &traced
}

// skipped are the agents that failed at the session or the message of item and were skipped, by name.
func skipped(item *queue.Item) []string {
	var names []string
	for _, stamps := range []envelope.Stamps{item.Stamps, item.Mail.Stamps} {
		for name := range strings.SplitSeq(string(stamps[envelope.StampSkipped]), ",") {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Apply writes results into the recipients of item.
func Apply(item *queue.Item, results []Result) {
	for _, res := range results {
		r := item.Mail.Recipient(res.Index)
		if r == nil {
			continue
		}
		r.State, r.Reply, r.Remote = res.State, res.Reply, res.Remote
		r.Reported = r.Reported || res.Passed
	}
}

// Timeouts of the client, RFC 5321 section 4.5.3.2.
type Timeouts struct {
	Connect time.Duration // 30 s; the RFC has none
	Command time.Duration // 5 min: greeting, EHLO, STARTTLS, AUTH, and each group of MAIL and RCPT
	Data    time.Duration // 2 min: the reply to DATA
	Block   time.Duration // 3 min: each write of content
	Dot     time.Duration // 10 min: the reply to the final dot
}

func (t Timeouts) withDefaults() Timeouts {
	t.Connect = cmp.Or(t.Connect, 30*time.Second)
	t.Command = cmp.Or(t.Command, 5*time.Minute)
	t.Data = cmp.Or(t.Data, 2*time.Minute)
	t.Block = cmp.Or(t.Block, 3*time.Minute)
	t.Dot = cmp.Or(t.Dot, 10*time.Minute)
	return t
}

func pending(item *queue.Item) []*envelope.Recipient {
	var out []*envelope.Recipient
	for _, r := range item.Mail.Recipients {
		if r.State == envelope.Pending {
			out = append(out, r)
		}
	}
	return out
}

func all(item *queue.Item, state envelope.RecipientState, rep envelope.Reply) []Result {
	var out []Result
	for _, r := range pending(item) {
		out = append(out, Result{Index: r.Index, State: state, Reply: rep})
	}
	return out
}

func reply(code int, enhanced, text string) envelope.Reply {
	return envelope.Reply{Code: code, Enhanced: enhanced, Text: text}
}

package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
)

// maxRecipients of one transaction. RFC 5321 section 4.5.3.1.8 lets servers refuse more.
const maxRecipients = 100

// attempt is one delivery of an item: every recipient gets its result from the first target that gives one.
type attempt struct {
	*Delivery
	connector *connector
	item      *queue.Item
	content   *content
	results   []Result
	open      []*envelope.Recipient // without a result yet
	last      *failure
	tried     []string // what became of each target that failed, in words
}

// send delivers item over SMTP or LMTP.
func (d *Delivery) send(ctx context.Context, c *connector, item *queue.Item) []Result {
	a := &attempt{Delivery: d, connector: c, item: item, open: pending(item)}
	for _, r := range a.open {
		a.results = append(a.results, Result{Index: r.Index})
	}
	var err error
	if a.content, err = newContent(item); err != nil {
		a.rest(contentReply(err))
		return a.results
	}
	targets, why := d.targets(ctx, c, item)
	for _, t := range targets {
		if len(a.open) == 0 || ctx.Err() != nil {
			break
		}
		a.try(ctx, t)
	}
	switch {
	case a.last != nil:
		why = a.verdict()
	case ctx.Err() != nil:
		why = reply(451, "4.3.2", "shutting down")
	}
	a.rest(why)
	return a.results
}

// contentReply says what is wrong with a message that cannot be sent.
func contentReply(err error) envelope.Reply {
	if errors.Is(err, errBareLine) {
		return reply(550, "5.6.0", errBareLine.Error())
	}
	return reply(451, "4.3.0", "the stored message cannot be read")
}

// settle gives r its result.
func (a *attempt) settle(r *envelope.Recipient, state envelope.RecipientState, rep envelope.Reply, cl *client) *Result {
	res := a.result(r)
	res.State, res.Reply = state, rep
	if cl != nil {
		res.Remote, res.TLS = cl.target.String(), cl.tls
	}
	if i := slices.Index(a.open, r); i >= 0 {
		a.open = slices.Delete(a.open, i, i+1)
	}
	return res
}

func (a *attempt) result(r *envelope.Recipient) *Result {
	i := slices.IndexFunc(a.results, func(res Result) bool { return res.Index == r.Index })
	return &a.results[i]
}

// refuse gives r the refusal rep.
func (a *attempt) refuse(r *envelope.Recipient, rep envelope.Reply, cl *client) {
	state := envelope.Pending
	if rep.Permanent() {
		state = envelope.Failed
	}
	a.settle(r, state, rep, cl)
}

// rest refuses all that have no result.
func (a *attempt) rest(rep envelope.Reply) {
	for len(a.open) > 0 {
		a.refuse(a.open[0], rep, nil)
	}
}

// try delivers what is open to t. A connection that turns out to be dead, or has had its share of messages, is no
// failure of t.
func (a *attempt) try(ctx context.Context, t target) {
	verify := a.item.Mail.Sender.RequireTLS && t.network == "tcp"
	key := a.key(t, verify)
	for {
		fail := a.tryOnce(ctx, t, key, verify)
		if fail == nil {
			return
		}
		if !fail.again {
			a.failed(t, fail)
			return
		}
	}
}

// failed remembers the failure to speak for those that no target takes: one that may pass, if there is any.
func (a *attempt) failed(t target, f *failure) {
	said := f.reply.String()
	if !strings.Contains(said, t.address) && !strings.Contains(said, t.String()) {
		said = t.String() + ": " + said
	}
	a.tried = append(a.tried, said)
	if a.last == nil || !a.last.reply.Temporary() || f.reply.Temporary() {
		a.last = f
	}
}

// maxWhy bounds in octets what is kept of the words of many targets.
const maxWhy = 1500

// verdict on those that no target has taken: the failure that counts, with what became of the other targets.
func (a *attempt) verdict() envelope.Reply {
	why := a.last.reply
	if len(a.tried) < 2 || why.Permanent() { // a permanent one goes to the sender, who is not told of all our hosts
		return why
	}
	why.Text = fmt.Sprintf("none of %d hosts took it: %s", len(a.tried), strings.Join(a.tried, "; "))
	if len(why.Text) > maxWhy {
		why.Text = strings.ToValidUTF8(why.Text[:maxWhy], "") + "..."
	}
	return why
}

func (a *attempt) key(t target, verify bool) poolKey {
	key := poolKey{connector: a.connector.Name, address: t.address}
	switch {
	case verify:
		key.checked = "requiretls " + t.domain + " " + t.host
	case a.connector.verifiesName():
		key.checked = t.domain + " " + t.host
	}
	return key
}

func (a *attempt) tryOnce(ctx context.Context, t target, key poolKey, verify bool) *failure {
	if cl := a.pool.take(key); cl != nil {
		fail := a.converse(ctx, cl, key, true)
		if fail != nil && fail.again {
			a.pool.drop(key)
		}
		return fail
	}
	cl, fail := a.dial(ctx, a.connector, t, verify)
	if fail != nil {
		a.pool.markDown(t.address)
		return fail
	}
	return a.converse(ctx, cl, key, false)
}

// converse runs transactions on cl until nothing is open, and keeps cl for the next item if it is fit for that.
func (a *attempt) converse(ctx context.Context, cl *client, key poolKey, reused bool) *failure {
	stop := context.AfterFunc(ctx, func() { _ = cl.Conn.Close() })
	defer stop()
	for len(a.open) > 0 {
		if cl.full(a.connector) {
			a.pool.quit(cl)
			return &failure{again: true}
		}
		t := &transaction{attempt: a, client: cl, reused: reused}
		if fail := t.run(); fail != nil {
			_ = cl.Conn.Close()
			return fail
		}
		reused = false
	}
	if cl.full(a.connector) || !stop() {
		a.pool.quit(cl)
		return nil
	}
	a.pool.put(key, cl, a.connector.inactivity())
	return nil
}

// full reports whether cl has had as many messages as it may.
func (cl *client) full(c *connector) bool {
	limit := c.MaxPerConn
	if limit <= 0 {
		limit = 20
	}
	if m := cl.ext.mailMax; m > 0 {
		limit = min(limit, m)
	}
	return cl.sent >= limit
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

// Journal is the agent. It reports at OnRouted: groups are expanded as of now, and the message is not yet split by
// next hops, so one set of reports holds all recipients of a copy.
type Journal struct {
	Config
	host  *sdk.Host
	label string // of the agent block
	from  address.Mailbox
	rules []rule
	own   map[string]bool // journal mailboxes, by key
	sets  sdk.Table[setRow]
	down  sdk.Table[downRow]

	manifested sdk.Table[turnRow] // by journal mailbox
}

// setRow remembers a set of reports until the next manifest; its key is the id of the set.
type setRow struct {
	Mailbox string `json:"mailbox"`
	Parts   int    `json:"parts"`
	Message string `json:"message"`
}

// turnRow is the last turn that had manifests for a journal mailbox, and the one before it.
type turnRow struct {
	Turn  string `json:"turn"`
	After string `json:"after,omitempty"` // "": it was the first
}

// downRow says that a journal mailbox cannot be delivered to.
type downRow struct {
	Reply string `json:"reply"`
}

// downFor is how long reports go to the alternate mailbox after a failed delivery; then the journal mailbox is
// tried again.
const downFor = time.Hour

// OnRouted reports a message to the journal mailboxes whose rules match.
func (j *Journal) OnRouted(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	if isReport(e) {
		return j.redirect(e)
	}
	if !slices.ContainsFunc(e.Recipients, func(r sdk.EnvelopeRecipient) bool { return !j.own[r.Key()] }) {
		return sdk.Continue() // a message to a journal mailbox, or nobody is left
	}
	mailboxes, names := j.matching(e)
	if len(mailboxes) == 0 {
		return sdk.Continue()
	}
	m, err := digestOf(ctx, e)
	if err != nil {
		return sdk.Undetermined("cannot read the message", err)
	}
	v := sdk.Continue()
	for _, to := range mailboxes {
		set := j.newSet(e, to)
		if set.parts == 0 {
			continue
		}
		for i := range set.parts {
			v = v.Spawn(j.report(e, set, i, m))
		}
		row := setRow{Mailbox: to.String(), Parts: set.parts, Message: e.TrackingID}
		v = v.Because("journaled", strings.Join(names, ", ")).Write(j.sets.Put(row, 0).At(set.id)).Count("reports", set.parts)
	}
	return j.remember(v, e, mailboxes)
}

// stampReported of a recipient: the journal mailboxes that have a report of the message to it. It is stored in one commit
// with the reports, so that a message which an agent behind this one defers is not reported again.
const stampReported = "reported"

// maxRemembered octets of stamps; of a message to more recipients some may be reported twice, but none never.
const maxRemembered = 32 << 10

// remember the reports in the recipients' stamps.
func (j *Journal) remember(v sdk.Verdict, e *sdk.RoutingEvent, mailboxes []address.Mailbox) sdk.Verdict {
	size := len(e.Recipients) * (len(j.label) + len(stampReported) + 2 + len(mailboxes)*markLength)
	if size > maxRemembered {
		return v
	}
	for _, r := range e.Recipients {
		before := e.RecipientStamp(r, j.label+"."+stampReported)
		after := before
		for _, to := range mailboxes {
			if !strings.Contains(after, mark(to)) {
				after += mark(to)
			}
		}
		if after != before {
			v = v.StampRecipient(r, stampReported, after)
		}
	}
	return v
}

// markLength of what stands for a journal mailbox in a stamp.
const markLength = 9

func mark(to address.Mailbox) string { return hexSum([]byte(to.Key()))[:markLength-1] + " " }

// unreported recipients, which a journal mailbox has no report of yet.
func (j *Journal) unreported(e *sdk.RoutingEvent, to address.Mailbox) []sdk.EnvelopeRecipient {
	var out []sdk.EnvelopeRecipient
	for _, r := range e.Recipients {
		if !strings.Contains(e.RecipientStamp(r, j.label+"."+stampReported), mark(to)) {
			out = append(out, r)
		}
	}
	return out
}

// isReport reports whether a message is a report or manifest of ours: only an agent on this host can make one, and
// only ours names a set.
func isReport(e *sdk.RoutingEvent) bool {
	return (e.Origin == "spawn" || wasRefused(e)) && e.Sender.IsNull() && (e.Headers.Has(setField) || e.Headers.Has(manifestField))
}

// wasRefused reports whether the message was refused for good, or its time was over. Only what agents have made durable
// comes again then.
func wasRefused(e *sdk.RoutingEvent) bool { return e.Origin == "refused" }

// redirect sends a report to the alternate mailbox while its own one cannot be delivered to, and when that has refused
// it.
func (j *Journal) redirect(e *sdk.RoutingEvent) sdk.Verdict {
	v := sdk.Continue()
	if j.Alternate == nil {
		return v
	}
	for _, r := range e.Recipients {
		if r.Key() == j.Alternate.Key() || !j.own[r.Key()] {
			continue
		}
		if _, down := j.down.RowFor(e, r); down || wasRefused(e) {
			v = v.Edit(sdk.RewriteRecipient(r, *j.Alternate)).Because("alternate-mailbox", r.String()).Count("alternate", 1)
		}
	}
	return v
}

// matching journal mailboxes, and the names of the rules that matched.
func (j *Journal) matching(e *sdk.RoutingEvent) (mailboxes []address.Mailbox, names []string) {
	for _, r := range j.rules {
		if !r.matches(e, j.directions(e)) {
			continue
		}
		names = append(names, r.name)
		if !slices.Contains(mailboxes, r.mailbox) {
			mailboxes = append(mailboxes, r.mailbox)
		}
	}
	return mailboxes, names
}

// directions of a message: one of ours may go both inside and outside.
func (j *Journal) directions(e *sdk.RoutingEvent) map[string]bool {
	ours := e.Session.Traffic == sdk.Outbound || e.Session.Traffic == sdk.Internal || e.Session.Trust > sdk.Anonymous && e.Session.Trust != sdk.Partner
	d := map[string]bool{"all": true, "inbound": !ours}
	for _, r := range e.Recipients {
		inside := j.host.Accepts(strings.ToLower(r.Domain))
		d["internal"] = d["internal"] || ours && inside
		d["outbound"] = d["outbound"] || ours && !inside
	}
	return d
}

func (r *rule) matches(e *sdk.RoutingEvent, directions map[string]bool) bool {
	sender := anyIn(r.senders, e.Sender.Mailbox, e.Message.From)
	recipient, group, either := false, false, anyIn(r.addresses, e.Sender.Mailbox, e.Message.From)
	for _, to := range e.Recipients {
		recipient = recipient || anyIn(r.recipients, to.Mailbox, to.Original)
		either = either || anyIn(r.addresses, to.Mailbox, to.Original)
		group = group || anyIn(r.groups, to.ExpandedFrom)
	}
	return directions[r.direction] &&
		(sender || r.senders.Len() == 0) && (recipient || r.recipients.Len() == 0) &&
		(group || r.groups.Len() == 0) && (either || r.addresses.Len() == 0)
}

func anyIn(list *match.Addresses, mailboxes ...address.Mailbox) bool {
	return slices.ContainsFunc(mailboxes, func(m address.Mailbox) bool {
		_, ok := list.Match(m)
		return ok
	})
}

// set of the reports of one copy of a message to one journal mailbox.
type set struct {
	id         string
	to         address.Mailbox
	recipients []sdk.EnvelopeRecipient
	parts      int
}

// newSet has an id that is the same each time the event is processed, and is no other copy's: those that an agent of this very
// event has split off are told apart by their recipients alone.
func (j *Journal) newSet(e *sdk.RoutingEvent, to address.Mailbox) set {
	recipients := j.unreported(e, to)
	key := fmt.Appendf(nil, "%s\n%d\n%s\n", e.Item, e.Copy, to.Key())
	for _, r := range recipients {
		key = fmt.Appendf(key, "%d ", r.Index)
	}
	sum := sha256.Sum256(key)
	parts := (len(recipients) + j.Recipients - 1) / j.Recipients
	return set{id: hex.EncodeToString(sum[:16]), to: to, recipients: recipients, parts: parts}
}

// OnDeferred remembers that a journal mailbox cannot be delivered to.
func (j *Journal) OnDeferred(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return j.note(e, true)
}

// OnFailed is like OnDeferred.
func (j *Journal) OnFailed(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return j.note(e, true)
}

// OnDelivered forgets it.
func (j *Journal) OnDelivered(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return j.note(e, false)
}

func (j *Journal) note(e *sdk.DeliveryEvent, down bool) sdk.Verdict {
	v := sdk.Continue()
	for _, r := range e.Results {
		if !j.own[r.Recipient.Key()] || r.Recipient.Key() == j.Alternate.Key() {
			continue
		}
		row := j.down.Delete()
		if down {
			row = j.down.Put(downRow{fmt.Sprintf("%d %s", r.Reply.Code, r.Reply.Enhanced)}, downFor)
		}
		v = v.Write(row.At(r.Recipient.Key()))
	}
	return v
}

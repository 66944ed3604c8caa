package pipeline

import (
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// reply fills in what a reply of an agent leaves open. Only ASCII goes to a client that has not asked for more
// (RFC 6531 section 3.7.4.2).
func (r *run) reply(d Decision, given *agentpb.Reply) envelope.Reply {
	reply := envelope.Reply{Code: int(given.GetCode()), Enhanced: given.GetEnhanced(), Text: given.GetText()}
	usual := r.usualReply(d)
	if usual.IsZero() {
		return usual
	}
	if reply.Code == 0 {
		reply.Code = usual.Code
		if reply.Enhanced != "" && int(reply.Enhanced[0]-'0') != reply.Code/100 { // only of disconnect
			reply.Code += 100 * (int(reply.Enhanced[0]-'0') - reply.Code/100)
		}
	}
	if reply.Enhanced == "" {
		reply.Enhanced = strconv.Itoa(reply.Code/100) + usual.Enhanced[1:]
	}
	if strings.TrimSpace(reply.Text) == "" {
		reply.Text = usual.Text
	}
	if m := r.ev.Mail; m == nil || !m.Sender.SMTPUTF8 {
		reply.Text = asciiText(reply.Text)
	}
	return reply
}

// usualReply is the host's own neutral reply. OnConnect is answered by a banner: RFC 5321 section 3.1 has 554 for
// a server that takes no mail, section 3.8 has 421 for one that closes.
func (r *run) usualReply(d Decision) envelope.Reply {
	connect := r.ev.Kind == agentpb.EventKind_EVENT_KIND_CONNECT
	switch d {
	case Reject:
		return envelope.Reply{Code: pick(connect, 554, 550), Enhanced: "5.7.1", Text: r.refused()}
	case Defer:
		return envelope.Reply{Code: pick(connect, 421, 451), Enhanced: "4.7.1", Text: "Please try again later"}
	case Disconnect:
		return envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "Closing connection"}
	}
	return envelope.Reply{}
}

func pick(yes bool, a, b int) int {
	if yes {
		return a
	}
	return b
}

// refused is the text of a refusal that says no more than what was refused.
func (r *run) refused() string {
	switch r.ev.Kind {
	case agentpb.EventKind_EVENT_KIND_CONNECT:
		return "Connection refused"
	case agentpb.EventKind_EVENT_KIND_MAIL:
		return "Sender refused"
	case agentpb.EventKind_EVENT_KIND_RCPT:
		return "Recipient refused"
	}
	if r.rule.perRecipient {
		return "Message refused"
	}
	return "Command refused"
}

// failureReply is what a client reads when an agent has failed. It tells nothing of that.
func (r *run) failureReply(d Decision) envelope.Reply {
	reply := r.usualReply(d)
	if d == Defer {
		reply.Enhanced, reply.Text = "4.3.2", "Service temporarily unavailable, please try again later"
	}
	return reply
}

// asciiText writes a question mark for every character beyond ASCII.
func asciiText(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 0x80 {
			return '?'
		}
		return c
	}, s)
}

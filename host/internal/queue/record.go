package queue

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// recordVersion is the first octet of item and entry records. A record with another is unreadable.
const recordVersion = 1

// head is what a change needs to know of the item that it replaces. Its fields come first in the record.
type head struct {
	next     time.Time
	versions versions
}

// versions name the content of an item. 0 is none, and for a header also an empty one.
type versions struct {
	header, body, originalHeader, originalBody contentID
}

// contentID names a header block or a body in the store. Ids ascend and are odd where the octets are in a file.
type contentID uint64

func (id contentID) inFile() bool { return id&1 == 1 }

// distinct calls fn once for each content named.
func (v versions) distinct(fn func(contentID)) {
	all := [...]contentID{v.header, v.body, v.originalHeader, v.originalBody}
	for i, id := range all {
		if id != 0 && !containsID(all[:i], id) {
			fn(id)
		}
	}
}

func containsID(ids []contentID, id contentID) bool {
	for _, other := range ids {
		if other == id {
			return true
		}
	}
	return false
}

// Tags of an item record. Those of the head are the lowest and are written first.
const (
	tagNext = iota + 1
	tagHeader
	tagBody
	tagOriginalHeader
	tagOriginalBody
	lastHeadTag
	tagMessage
	tagParent
	tagOrigin
	tagSession
	tagSessionStamp
	tagDepth
	tagPrefix
	tagReceived
	tagDurable
	tagState
	tagRouted
	tagHop
	tagAttempts
	tagExpires
	tagWaitingFor
	tagMissed
	tagDoneAgent
	tagAgent
	tagReason
	tagEvidence
	tagLastError
	tagMailID
	tagSender
	tagRecipient
	tagNextIndex
	tagStamp
	tagTraffic
)

// encodeItem writes the record of an item. Its content is named, not contained.
func encodeItem(item *Item, v versions) []byte {
	e := &encoder{b: make([]byte, 0, 1024+len(item.Prefix))}
	e.b = append(e.b, recordVersion)
	e.time(tagNext, item.Next)
	e.number(tagHeader, uint64(v.header))
	e.number(tagBody, uint64(v.body))
	e.number(tagOriginalHeader, uint64(v.originalHeader))
	e.number(tagOriginalBody, uint64(v.originalBody))
	encodeWhence(e, item)
	encodeProgress(e, item)
	encodeMail(e, item.Mail)
	return e.b
}

func encodeWhence(e *encoder, item *Item) {
	e.text(tagMessage, item.Message)
	e.text(tagParent, item.Parent)
	e.text(tagOrigin, item.Origin)
	mark := e.begin(tagSession)
	encodeSession(e, &item.Session)
	e.end(mark)
	e.octets(tagPrefix, item.Prefix)
	e.time(tagReceived, item.Received)
	e.flag(tagDurable, item.Durable)
	encodeStamps(e, tagSessionStamp, item.Stamps)
	e.number(tagDepth, uint64(item.Depth))
}

func encodeProgress(e *encoder, item *Item) {
	e.number(tagState, uint64(item.State))
	e.flag(tagRouted, item.Routed)
	e.text(tagHop, item.Hop)
	e.number(tagAttempts, uint64(item.Attempts))
	e.time(tagExpires, item.Expires)
	e.text(tagWaitingFor, item.WaitingFor)
	for _, agent := range item.Missed {
		e.element(tagMissed, agent)
	}
	for _, agent := range item.DoneAgents {
		e.element(tagDoneAgent, agent)
	}
	e.text(tagAgent, item.Agent)
	e.text(tagReason, item.Reason)
	e.text(tagEvidence, item.Evidence)
	e.text(tagLastError, item.LastError)
}

func encodeMail(e *encoder, m *envelope.Mail) {
	e.text(tagMailID, m.ID)
	mark := e.begin(tagSender)
	encodeSender(e, &m.Sender)
	e.end(mark)
	for _, r := range m.Recipients {
		mark := e.begin(tagRecipient)
		encodeRecipient(e, r)
		e.end(mark)
	}
	e.number(tagNextIndex, uint64(m.NextIndex))
	encodeStamps(e, tagStamp, m.Stamps)
	e.number(tagTraffic, uint64(m.Traffic))
}

// open checks the version of a record and gives its fields.
func open(record []byte) (*decoder, error) {
	if len(record) == 0 {
		return nil, fmt.Errorf("%w: empty", errMalformed)
	}
	if record[0] != recordVersion {
		return nil, fmt.Errorf("record of version %d, this program knows %d", record[0], recordVersion)
	}
	return &decoder{rest: record[1:]}, nil
}

// decodeHead reads no more of an item record than its head.
func decodeHead(record []byte) (head, error) {
	d, err := open(record)
	if err != nil {
		return head{}, err
	}
	var h head
	for d.next() && d.tag <= lastHeadTag {
		h.field(d)
	}
	return h, d.err
}

func (h *head) field(d *decoder) {
	switch d.tag {
	case tagNext:
		h.next = d.time()
	case tagHeader:
		h.versions.header = contentID(d.value)
	case tagBody:
		h.versions.body = contentID(d.value)
	case tagOriginalHeader:
		h.versions.originalHeader = contentID(d.value)
	case tagOriginalBody:
		h.versions.originalBody = contentID(d.value)
	}
}

// decodeItem reads an item record; content is left out.
func decodeItem(id string, record []byte) (*Item, head, error) {
	d, err := open(record)
	if err != nil {
		return nil, head{}, err
	}
	item, h := &Item{ID: id, Mail: &envelope.Mail{}}, head{}
	for d.next() {
		switch {
		case d.tag <= lastHeadTag:
			h.field(d)
		case d.tag < tagState:
			decodeWhence(d, item)
		case d.tag < tagMailID:
			decodeProgress(d, item)
		default:
			decodeMail(d, item.Mail)
		}
	}
	item.Next = h.next
	return item, h, d.err
}

func decodeWhence(d *decoder, item *Item) {
	switch d.tag {
	case tagMessage:
		item.Message = d.text()
	case tagParent:
		item.Parent = d.text()
	case tagOrigin:
		item.Origin = d.text()
	case tagSession:
		d.nested(func(d *decoder) { decodeSession(d, &item.Session) })
	case tagPrefix:
		item.Prefix = append([]byte(nil), d.data...)
	case tagReceived:
		item.Received = d.time()
	case tagDurable:
		item.Durable = d.flag()
	case tagSessionStamp:
		decodeStamp(d, &item.Stamps)
	case tagDepth:
		item.Depth = int(d.value)
	}
}

func decodeProgress(d *decoder, item *Item) {
	switch d.tag {
	case tagState:
		item.State = decodeState(d)
	case tagRouted:
		item.Routed = d.flag()
	case tagHop:
		item.Hop = d.text()
	case tagAttempts:
		item.Attempts = int(d.value)
	case tagExpires:
		item.Expires = d.time()
	case tagWaitingFor:
		item.WaitingFor = d.text()
	case tagMissed:
		item.Missed = append(item.Missed, d.text())
	case tagDoneAgent:
		item.DoneAgents = append(item.DoneAgents, d.text())
	case tagAgent:
		item.Agent = d.text()
	case tagReason:
		item.Reason = d.text()
	case tagEvidence:
		item.Evidence = d.text()
	case tagLastError:
		item.LastError = d.text()
	}
}

// decodeState refuses what State.String has no name for.
func decodeState(d *decoder) State {
	if d.value >= uint64(Done) {
		d.err = fmt.Errorf("%w: state %d", errMalformed, d.value)
		return Parked
	}
	return State(d.value)
}

func decodeMail(d *decoder, m *envelope.Mail) {
	switch d.tag {
	case tagMailID:
		m.ID = d.text()
	case tagSender:
		d.nested(func(d *decoder) { decodeSender(d, &m.Sender) })
	case tagRecipient:
		r := &envelope.Recipient{}
		d.nested(func(d *decoder) { decodeRecipient(d, r) })
		m.Recipients = append(m.Recipients, r)
	case tagNextIndex:
		m.NextIndex = int(d.value)
	case tagStamp:
		decodeStamp(d, &m.Stamps)
	case tagTraffic:
		m.Traffic = envelope.Traffic(d.value)
	}
}

func encodeStamps(e *encoder, tag int, stamps envelope.Stamps) {
	for name, value := range stamps {
		mark := e.begin(tag)
		e.element(1, name)
		e.octets(2, value)
		e.end(mark)
	}
}

func decodeStamp(d *decoder, stamps *envelope.Stamps) {
	name, value := "", []byte{}
	d.nested(func(d *decoder) {
		switch d.tag {
		case 1:
			name = d.text()
		case 2:
			value = append(value, d.data...)
		}
	})
	if *stamps == nil {
		*stamps = envelope.Stamps{}
	}
	(*stamps)[name] = value
}

func encodeMailbox(e *encoder, tag int, m address.Mailbox) {
	mark := e.begin(tag)
	e.text(1, m.Local)
	e.text(2, m.Domain)
	e.end(mark)
}

func decodeMailbox(d *decoder, m *address.Mailbox) {
	d.nested(func(d *decoder) {
		switch d.tag {
		case 1:
			m.Local = d.text()
		case 2:
			m.Domain = d.text()
		}
	})
}

func encodeSender(e *encoder, s *envelope.Sender) {
	encodeMailbox(e, 1, s.Address)
	e.number(2, uint64(s.Size))
	e.text(3, s.BodyType)
	e.flag(4, s.SMTPUTF8)
	e.flag(5, s.RequireTLS)
	e.text(6, s.Ret)
	e.text(7, s.EnvID)
	e.text(8, s.Auth)
}

func decodeSender(d *decoder, s *envelope.Sender) {
	switch d.tag {
	case 1:
		decodeMailbox(d, &s.Address)
	case 2:
		s.Size = int64(d.value)
	case 3:
		s.BodyType = d.text()
	case 4:
		s.SMTPUTF8 = d.flag()
	case 5:
		s.RequireTLS = d.flag()
	case 6:
		s.Ret = d.text()
	case 7:
		s.EnvID = d.text()
	case 8:
		s.Auth = d.text()
	}
}

func encodeRecipient(e *encoder, r *envelope.Recipient) {
	e.number(1, uint64(r.Index))
	encodeMailbox(e, 2, r.Address)
	e.text(3, r.ORCPT)
	e.number(4, uint64(r.Notify))
	e.text(5, r.Original)
	e.text(6, r.ExpandedFrom)
	e.text(7, r.Route)
	encodeStamps(e, 8, r.Stamps)
	e.number(9, uint64(r.State))
	if !r.Reply.IsZero() {
		mark := e.begin(10)
		e.number(1, uint64(r.Reply.Code))
		e.text(2, r.Reply.Enhanced)
		e.text(3, r.Reply.Text)
		e.end(mark)
	}
	e.text(11, r.Remote)
	e.flag(12, r.Reported)
	e.flag(13, r.Delayed)
}

func decodeRecipient(d *decoder, r *envelope.Recipient) {
	switch d.tag {
	case 1:
		r.Index = int(d.value)
	case 2:
		decodeMailbox(d, &r.Address)
	case 3:
		r.ORCPT = d.text()
	case 4:
		r.Notify = envelope.Notify(d.value)
	case 5:
		r.Original = d.text()
	case 6:
		r.ExpandedFrom = d.text()
	case 7:
		r.Route = d.text()
	case 8:
		decodeStamp(d, &r.Stamps)
	case 9:
		r.State = envelope.RecipientState(d.value)
	case 10:
		d.nested(func(d *decoder) { decodeReply(d, &r.Reply) })
	case 11:
		r.Remote = d.text()
	case 12:
		r.Reported = d.flag()
	case 13:
		r.Delayed = d.flag()
	}
}

func decodeReply(d *decoder, r *envelope.Reply) {
	switch d.tag {
	case 1:
		r.Code = int(d.value)
	case 2:
		r.Enhanced = d.text()
	case 3:
		r.Text = d.text()
	}
}

func encodeSession(e *encoder, s *envelope.Session) {
	e.text(1, s.ID)
	e.text(2, s.Connector)
	encodeAddrPort(e, 3, s.Client)
	encodeAddrPort(e, 4, s.Peer)
	encodeAddrPort(e, 5, s.Local)
	e.text(6, s.Helo)
	e.flag(7, s.Extended)
	if s.TLS != nil {
		mark := e.begin(8)
		encodeTLS(e, s.TLS)
		e.end(mark)
	}
	if s.Auth != nil {
		mark := e.begin(9)
		e.text(1, s.Auth.Mechanism)
		e.text(2, s.Auth.Identity)
		e.end(mark)
	}
	e.number(10, uint64(s.Trust))
	e.time(11, s.Started)
	e.flag(12, s.EarlyTalk)
	e.number(13, uint64(s.Commands))
	e.number(14, uint64(s.Rejects))
	e.number(15, uint64(s.Unsynchronized))
}

func decodeSession(d *decoder, s *envelope.Session) {
	switch d.tag {
	case 1:
		s.ID = d.text()
	case 2:
		s.Connector = d.text()
	case 3:
		s.Client = decodeAddrPort(d)
	case 4:
		s.Peer = decodeAddrPort(d)
	case 5:
		s.Local = decodeAddrPort(d)
	case 6:
		s.Helo = d.text()
	case 7:
		s.Extended = d.flag()
	case 8:
		s.TLS = &envelope.TLS{}
		d.nested(func(d *decoder) { decodeTLS(d, s.TLS) })
	case 9:
		s.Auth = &envelope.Auth{}
		d.nested(func(d *decoder) { decodeAuth(d, s.Auth) })
	case 10:
		s.Trust = envelope.Trust(d.value)
	case 11:
		s.Started = d.time()
	case 12:
		s.EarlyTalk = d.flag()
	case 13:
		s.Commands = int(d.value)
	case 14:
		s.Rejects = int(d.value)
	case 15:
		s.Unsynchronized = int(d.value)
	}
}

func encodeTLS(e *encoder, t *envelope.TLS) {
	e.text(1, t.Version)
	e.text(2, t.CipherSuite)
	e.text(3, t.ServerName)
	e.text(4, t.ClientSubject)
	e.flag(5, t.ClientVerified)
}

func decodeTLS(d *decoder, t *envelope.TLS) {
	switch d.tag {
	case 1:
		t.Version = d.text()
	case 2:
		t.CipherSuite = d.text()
	case 3:
		t.ServerName = d.text()
	case 4:
		t.ClientSubject = d.text()
	case 5:
		t.ClientVerified = d.flag()
	}
}

func decodeAuth(d *decoder, a *envelope.Auth) {
	switch d.tag {
	case 1:
		a.Mechanism = d.text()
	case 2:
		a.Identity = d.text()
	}
}

func encodeAddrPort(e *encoder, tag int, a netip.AddrPort) {
	if a.IsValid() {
		b, _ := a.MarshalBinary() // never fails
		e.octets(tag, b)
	}
}

func decodeAddrPort(d *decoder) netip.AddrPort {
	var a netip.AddrPort
	if err := a.UnmarshalBinary(d.data); err != nil {
		d.err = fmt.Errorf("%w: %v", errMalformed, err)
	}
	return a
}

// Tags of an entry record.
const (
	entryMessage = iota + 1
	entryState
	entryHop
	entryRouted
	entryAttempts
	entryReceived
	entryExpires
	entryWaitingFor
	entrySender
	entryRecipients
	entrySize
	entryAgent
	entryReason
	entryLastError
)

// entryOf is what the schedule needs to know of item.
func entryOf(item *Item) Entry {
	return Entry{
		ID: item.ID, Message: item.Message, State: item.State, Hop: item.Hop, Routed: item.Routed,
		Attempts: item.Attempts, Received: item.Received, Next: item.Next, Expires: item.Expires,
		WaitingFor: item.WaitingFor, Sender: item.Mail.Sender.Address.String(),
		Recipients: len(item.Mail.Recipients), Size: item.Mail.Size() + int64(len(item.Prefix)),
		Agent: item.Agent, Reason: item.Reason, LastError: item.LastError,
	}
}

// encodeEntry writes what Scan reads. ID and Next are in the key.
func encodeEntry(item *Item) []byte {
	n := entryOf(item)
	e := &encoder{b: make([]byte, 0, 160)}
	e.b = append(e.b, recordVersion)
	if n.Message != n.ID {
		e.text(entryMessage, n.Message)
	}
	e.number(entryState, uint64(n.State))
	e.text(entryHop, n.Hop)
	e.flag(entryRouted, n.Routed)
	e.number(entryAttempts, uint64(n.Attempts))
	e.time(entryReceived, n.Received)
	e.time(entryExpires, n.Expires)
	e.text(entryWaitingFor, n.WaitingFor)
	e.text(entrySender, n.Sender)
	e.number(entryRecipients, uint64(n.Recipients))
	e.number(entrySize, uint64(n.Size))
	e.text(entryAgent, n.Agent)
	e.text(entryReason, n.Reason)
	e.text(entryLastError, n.LastError)
	return e.b
}

// decodeEntry reads an entry whose ID and Next come from the key.
func decodeEntry(n *Entry, record []byte) error {
	d, err := open(record)
	if err != nil {
		return err
	}
	n.Message = n.ID
	for d.next() {
		decodeEntryField(d, n)
	}
	return d.err
}

func decodeEntryField(d *decoder, n *Entry) {
	switch d.tag {
	case entryMessage:
		n.Message = d.text()
	case entryState:
		n.State = decodeState(d)
	case entryHop:
		n.Hop = d.text()
	case entryRouted:
		n.Routed = d.flag()
	case entryAttempts:
		n.Attempts = int(d.value)
	case entryReceived:
		n.Received = d.time()
	case entryExpires:
		n.Expires = d.time()
	case entryWaitingFor:
		n.WaitingFor = d.text()
	case entrySender:
		n.Sender = d.text()
	case entryRecipients:
		n.Recipients = int(d.value)
	case entrySize:
		n.Size = int64(d.value)
	case entryAgent:
		n.Agent = d.text()
	case entryReason:
		n.Reason = d.text()
	case entryLastError:
		n.LastError = d.text()
	}
}

// Keys: one letter, then what sorts.
const (
	spaceItem    = 'i' // id                    -> item record
	spaceEntry   = 'e' // next (8 octets), id   -> entry record
	spaceContent = 'c' // content id (8 octets) -> 0 and the octets, or 1 and the size (8 octets) of a file
	spaceShared  = 'n' // content id (8 octets) -> how many items name it, where more than one does (uvarint)
)

func itemKey(id string) []byte { return append([]byte{spaceItem}, id...) }

// entryKey sorts by next; the sign bit is turned so that times before 1970 and the zero time come first.
func entryKey(next time.Time, id string) []byte {
	k := make([]byte, 9, 9+len(id))
	k[0] = spaceEntry
	binary.BigEndian.PutUint64(k[1:], nanos(next)^1<<63)
	return append(k, id...)
}

func splitEntryKey(k []byte) (next time.Time, id string, ok bool) {
	if len(k) < 9 {
		return time.Time{}, "", false
	}
	n := binary.BigEndian.Uint64(k[1:]) ^ 1<<63
	if n != nanos(time.Time{}) {
		next = time.Unix(0, int64(n)).UTC()
	}
	return next, string(k[9:]), true
}

func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 1 << 63 // sorts before every real time
	}
	return uint64(t.UnixNano())
}

func contentKey(space byte, id contentID) []byte {
	return binary.BigEndian.AppendUint64([]byte{space}, uint64(id))
}

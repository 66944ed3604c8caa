package classifier

import (
	"net/mail"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/mime"
)

// signID is the number of a sign.
type signID uint8

// Signs are about how a message is made: what the standards ask for and the programs of mail keep to, and what those
// break who forge, hide or shout. They hold for any language, and for mail of any year. What newsletters do as well as
// spam does (HTML alone, pictures as links, links that tell who followed them) is none.
const (
	receivedBelow signID = iota
	receivedMalformed
	receivedOrder
	heloAddress
	hostNameless
	hostDynamic

	dateMissing
	dateMalformed
	dateZone
	dateWeekday
	dateAhead
	dateFarAhead
	dateBehind

	idMissing
	idMalformed
	idOfRelay
	answers
	answersNothing

	fromMissing
	fromMalformed
	fromNameless
	fromAddress
	fromQuoted
	fromRaw
	replySame
	toMissing
	toNobody
	toSender
	toSeries

	subjectMissing
	subjectCapitals
	subjectGap
	subjectRandom
	subjectExclaims
	subjectMoney
	subjectSpread
	subjectRaw
	subjectEncoded
	subjectRecipient

	fieldTwice
	versionMissing
	typeMalformed
	charsetMissing
	charsetUnknown
	textEncoded
	textAlternative
	multipartOfOne
	partDefective

	programMarks
	programID
	programUnnamed
	programOther
	programBoundary
	priorityHigh

	hiddenText
	cutWord
	unknownElements
	elsewhereByItself
	linkAddress
	linkNumber
	linkPort
	linkUser
	linkEscapes
	linkRandom
	linkShowsOther
	linksElsewhere
	linksHome

	textMissing
	textCapitals
	textExclaims
	textSpread
	textRandom
	textInvisible
	textMixed
	textDisguised

	signCount
)

// What is thought of a sign before anything was learnt: by so much it moves the log odds.
const (
	slight  = 0.25
	clearly = 0.5
	strong  = 0.75
	sure    = 1
)

// signs by their numbers. A training moves their weights, but none across zero.
var signs = [signCount]struct {
	name   string // also in the file of a model
	weight float64
}{
	// RFC 5321 section 4.4: who relays puts its field in front.
	receivedBelow:     {"Received below the author's fields", sure},
	receivedMalformed: {"Received malformed", clearly},
	receivedOrder:     {"Received out of order", clearly},
	heloAddress:       {"HELO is an address", strong},
	hostNameless:      {"host without a name", slight},
	hostDynamic:       {"straight from a dynamic host", slight},

	// RFC 5322 section 3.3.
	dateMissing:   {"Date missing", strong},
	dateMalformed: {"Date malformed", clearly},
	dateZone:      {"Date in no zone", strong},
	dateWeekday:   {"Date on another weekday", sure},
	dateAhead:     {"Date hours ahead", strong},
	dateFarAhead:  {"Date days ahead", strong},
	dateBehind:    {"Date days behind", strong},

	// RFC 5322 section 3.6.4.
	idMissing:      {"Message-ID missing", strong},
	idMalformed:    {"Message-ID malformed", strong},
	idOfRelay:      {"Message-ID made by a relay", clearly},
	answers:        {"answers a message", -clearly},
	answersNothing: {"answers nothing", slight},

	// RFC 5322 sections 3.6.2 and 3.6.3.
	fromMissing:   {"From missing", strong},
	fromMalformed: {"From malformed", sure},
	fromNameless:  {"From without a name", slight},
	fromAddress:   {"From named as another address", clearly},
	fromQuoted:    {"From quoted twice", clearly},
	fromRaw:       {"From of 8 bits", slight},
	replySame:     {"Reply-To is From", slight},
	toMissing:     {"To missing", slight},
	toNobody:      {"To nobody", slight},
	toSender:      {"To is From", slight},
	toSeries:      {"To a series", strong},

	// RFC 5322 section 3.6.5.
	subjectMissing:   {"Subject missing", clearly},
	subjectCapitals:  {"Subject in capitals", clearly},
	subjectGap:       {"Subject with a gap", sure},
	subjectRandom:    {"Subject ends at random", strong},
	subjectExclaims:  {"Subject exclaims", slight},
	subjectMoney:     {"Subject of money or percent", slight},
	subjectSpread:    {"Subject s p r e a d", sure},
	subjectRaw:       {"Subject of 8 bits", slight},
	subjectEncoded:   {"Subject encoded for nothing", clearly},
	subjectRecipient: {"Subject names the recipient", clearly},

	// RFC 5322 section 3.6, RFC 2045.
	fieldTwice:      {"field twice", clearly},
	versionMissing:  {"MIME-Version missing", slight},
	typeMalformed:   {"Content-Type malformed", clearly},
	charsetMissing:  {"charset not told", slight},
	charsetUnknown:  {"charset unknown", clearly},
	textEncoded:     {"text encoded for nothing", strong},
	textAlternative: {"alternative empty", clearly},
	multipartOfOne:  {"multipart of one", clearly},
	partDefective:   {"part defective", slight},

	// What programs are known to write, each in its own way.
	programMarks:    {"program without its fields", sure},
	programID:       {"program with another's Message-ID", sure},
	programUnnamed:  {"program unnamed", slight},
	programOther:    {"program with another's fields", strong},
	programBoundary: {"program with another's boundary", clearly},
	priorityHigh:    {"priority high", slight},

	hiddenText:        {"text hidden", slight},
	cutWord:           {"word cut by a comment", sure},
	unknownElements:   {"elements unknown", slight},
	elsewhereByItself: {"page leads elsewhere by itself", strong},

	// RFC 3986.
	linkAddress:    {"link to an address", sure},
	linkNumber:     {"link to a number", sure},
	linkPort:       {"link to a port", clearly},
	linkUser:       {"link with a user", strong},
	linkEscapes:    {"link escapes for nothing", clearly},
	linkRandom:     {"link to a random host", slight},
	linkShowsOther: {"link shows another target", slight},
	linksElsewhere: {"links only elsewhere", slight},
	linksHome:      {"links to the sender", -clearly},

	textMissing:   {"text missing", slight},
	textCapitals:  {"text in capitals", clearly},
	textExclaims:  {"text exclaims", clearly},
	textSpread:    {"text s p r e a d", strong},
	textRandom:    {"text ends at random", clearly},
	textInvisible: {"text with invisible characters", slight},
	textMixed:     {"words of several scripts", strong},
	textDisguised: {"letters in disguise", clearly},
}

// signFields are read for their form alone: nothing that stands in them becomes a feature.
var signFields = []string{"Received", "Date", "Message-ID", "In-Reply-To", "References", "To", "Cc", "MIME-Version", "X-Mailer", "User-Agent", "X-MimeOLE",
	"X-Priority", "X-MSMail-Priority", "Importance"}

// inspector looks for signs.
type inspector struct {
	*Document
	measures *measures
	found    [signCount]bool
	to       []*mail.Address
	home     string // domain of the sender's organization
	hops     []hop
}

// signs of the document, in the order of their numbers.
func (d *Document) signs(m *measures) []signID {
	s := &inspector{Document: d, measures: m}
	s.to, _ = d.header.Addresses("To")
	if len(d.from) > 0 {
		s.home = organization(domainOf(d.from[0].Address))
	}
	s.trace()
	s.date()
	s.identification()
	s.originator()
	s.destination()
	s.subject()
	s.form()
	s.program()
	s.pages()
	s.texts()
	var out []signID
	for i, found := range s.found {
		if found {
			out = append(out, signID(i))
		}
	}
	return out
}

// note a sign that is there.
func (s *inspector) note(id signID, there bool) {
	if there {
		s.found[id] = true
	}
}

// has reports whether the header has a field.
func has(h mime.Header, name string) bool {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return true
		}
	}
	return false
}

// How far Date may be from when the last relay had the message.
const (
	ahead    = 2 * time.Hour
	farAhead = 30 * time.Hour
	behind   = 3 * 24 * time.Hour
)

func (s *inspector) date() {
	text := s.header.Get("Date")
	if text == "" {
		s.note(dateMissing, true)
		return
	}
	date, err := mail.ParseDate(text)
	if err != nil {
		s.note(dateMalformed, true)
		return
	}
	_, offset := date.Zone()
	s.note(dateZone, offset%(15*60) != 0 || offset > 14*3600 || offset < -12*3600)
	if day, _, ok := strings.Cut(text, ","); ok {
		s.note(dateWeekday, !strings.EqualFold(strings.TrimSpace(day), date.Weekday().String()[:3]))
	}
	for _, h := range s.hops {
		if !h.time.IsZero() {
			skew := date.Sub(h.time)
			s.note(dateAhead, skew > ahead)
			s.note(dateFarAhead, skew > farAhead)
			s.note(dateBehind, skew < -behind)
			return
		}
	}
}

func (s *inspector) identification() {
	id := s.header.Get("Message-ID")
	refers := has(s.header, "In-Reply-To") || has(s.header, "References")
	s.note(answers, refers)
	s.note(answersNothing, !refers && len(s.title) > 3 && strings.EqualFold(s.title[:3], "re:"))
	if id == "" {
		s.note(idMissing, true)
		return
	}
	inner, opened := strings.CutPrefix(id, "<")
	inner, closed := strings.CutSuffix(inner, ">")
	local, _, whole := cutLast(inner, "@")
	s.note(idMalformed, !opened || !closed || !whole || local == "" || strings.ContainsAny(inner, " \t<>(),;"))
	for _, h := range s.hops {
		s.note(idOfRelay, h.public() && len(h.number) >= leastNumber && organization(h.by) != s.home && strings.Contains(local, h.number))
	}
}

// leastNumber of characters that a relay's number of a message has, if finding it elsewhere is to mean anything.
const leastNumber = 8

func (s *inspector) originator() {
	text := s.header.Get("From")
	s.note(fromMissing, text == "")
	s.note(fromRaw, !isASCII(text))
	s.note(fromMalformed, text != "" && len(s.from) != 1 && isASCII(text))
	if len(s.from) == 0 {
		return
	}
	from := s.from[0]
	s.note(fromNameless, from.Name == "")
	s.note(fromAddress, strings.Contains(from.Name, "@") && !strings.Contains(strings.ToLower(from.Name), s.home))
	s.note(fromQuoted, strings.Contains(from.Name, `"`) || len(from.Name) > 1 && strings.HasPrefix(from.Name, "'") && strings.HasSuffix(from.Name, "'"))
	if reply, _ := s.header.Addresses("Reply-To"); len(reply) > 0 {
		s.note(replySame, strings.EqualFold(reply[0].Address, from.Address))
	}
}

// maxRecipients of To that are looked at.
const maxRecipients = 50

func (s *inspector) destination() {
	text := s.header.Get("To")
	s.note(toMissing, text == "" && !has(s.header, "Cc"))
	s.note(toNobody, strings.HasSuffix(text, ";") && len(s.to) == 0) // an empty group, RFC 5322 section 3.4
	if len(s.to) == 0 {
		return
	}
	s.to = s.to[:min(len(s.to), maxRecipients)]
	s.note(toSender, len(s.from) > 0 && strings.EqualFold(s.to[0].Address, s.from[0].Address))
	s.note(toSeries, series(s.to))
}

// series of recipients, as from a list of addresses in the order of the alphabet: three of the same name, or most of more
// than three beginning alike.
func series(to []*mail.Address) bool {
	names, starts := map[string]int{}, map[string]int{}
	for _, a := range to {
		local, _, _ := cutLast(strings.ToLower(a.Address), "@")
		start := local[:min(2, len(local))]
		names[local]++
		starts[start]++
		if names[local] >= 3 || len(to) > 3 && starts[start]*3 > len(to)*2 {
			return true
		}
	}
	return false
}

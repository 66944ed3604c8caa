package classifier

import (
	"regexp"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
)

// onceFields may stand in a header once (RFC 5322 section 3.6, RFC 2045 section 3).
var onceFields = []string{"From", "To", "Cc", "Subject", "Date", "Message-ID", "Reply-To", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"}

// form of the header and of MIME.
func (s *inspector) form() {
	for _, name := range onceFields {
		n := 0
		for i := range s.header {
			if strings.EqualFold(s.header[i].Name, name) {
				n++
			}
		}
		s.note(fieldTwice, n > 1)
	}
	if s.tree == nil {
		return
	}
	s.note(versionMissing, has(s.header, "Content-Type") && !has(s.header, "MIME-Version"))
	for p := range s.tree.All() {
		s.note(multipartOfOne, strings.HasPrefix(p.Type, "multipart/") && len(p.Parts) == 1)
		s.note(partDefective, len(p.Defects) > 0)
		for _, defect := range p.Defects {
			s.note(typeMalformed, defect == "Content-Type does not parse")
		}
	}
	for i := range s.Texts {
		s.text(&s.Texts[i])
	}
}

// text as its part declares it.
func (s *inspector) text(t *Text) {
	if t.part == nil {
		return
	}
	plain, charset := isASCII(t.raw), strings.ToLower(t.part.Params["charset"])
	s.note(charsetMissing, !plain && (charset == "" || charset == "us-ascii"))
	if charset != "" {
		_, err := htmlindex.Get(charset)
		s.note(charsetUnknown, err != nil)
	}
	s.note(textEncoded, plain && t.part.Encoding == "base64" && strings.HasPrefix(t.part.Type, "text/") && t.part.Disposition != "attachment")
	s.note(textAlternative, s.tree.Root.Type == "multipart/alternative" && t.part.Type == "text/plain" && len(strings.TrimSpace(t.raw)) < 20)
}

// Marks of programs.
var (
	outlookID       = regexp.MustCompile(`^<[0-9a-f]{12}\$[0-9a-f]{8}\$[0-9a-f]{8}@`)
	likeOutlookID   = regexp.MustCompile(`^<?[^@$]*\$[^@$]*\$[^@$]*@`)
	outlookBoundary = regexp.MustCompile(`^----=_NextPart_[0-9A-F]{3}_[0-9A-F]{4}_[0-9A-F]{8}\.[0-9A-F]{8}$`)
	oldOutlook      = regexp.MustCompile(`^Microsoft Outlook.*(IMO|CWS|Build 10)`)
)

// programs that say who they are, and the form of the Message-ID that they make.
var programs = []struct{ name, id *regexp.Regexp }{
	{regexp.MustCompile(`Outlook Express`), outlookID},
	{oldOutlook, regexp.MustCompile(`^<([0-9a-f]{12}\$[0-9a-f]{8}\$[0-9a-f]{8}|[A-Z]{28,}\.[^@]*|[0-9A-F]{10,}[^@]*)@`)},
	{regexp.MustCompile(`^QUALCOMM Windows Eudora`), regexp.MustCompile(`^<\d+(\.\d+){3,}`)},
	{regexp.MustCompile(`^Mozilla 4`), regexp.MustCompile(`^<[0-9A-F]{8}\.[0-9A-F]{1,8}@`)},
	{regexp.MustCompile(`^The Bat!`), regexp.MustCompile(`^<\d+\.\d{14}@`)},
	{regexp.MustCompile(`^AOL \d`), regexp.MustCompile(`@aol\.com>$`)},
	{regexp.MustCompile(`^(Apple|iPhone|iPad) Mail`), regexp.MustCompile(`^<[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-`)},
}

// program that is said to have made the message, against what it is known to write.
func (s *inspector) program() {
	name, id := s.header.Get("X-Mailer"), s.header.Get("Message-ID")
	name, id = name[:min(len(name), maxTitle)], id[:min(len(id), maxTitle)]
	mimeOLE, priority := has(s.header, "X-MimeOLE"), has(s.header, "X-MSMail-Priority")
	microsoft := strings.Contains(name, "Microsoft") || strings.Contains(name, "Outlook") || strings.Contains(name, "MSN")
	express := strings.Contains(name, "Outlook Express")

	s.note(programMarks, !mimeOLE && (express || oldOutlook.MatchString(name)))
	s.note(programMarks, express && !priority && !has(s.header, "X-Priority"))
	if name == "" {
		s.note(programUnnamed, !has(s.header, "User-Agent") && (mimeOLE || priority || outlookID.MatchString(id)))
	} else {
		s.note(programOther, !microsoft && (mimeOLE || priority || likeOutlookID.MatchString(id)))
	}
	for _, p := range programs {
		s.note(programID, id != "" && p.name.MatchString(name) && !p.id.MatchString(id))
	}
	s.boundary(name != "" && !microsoft, express)
	high := s.header.Get("X-Priority")
	s.note(priorityHigh, strings.HasPrefix(high, "1") || strings.HasPrefix(high, "2") || strings.EqualFold(s.header.Get("Importance"), "high"))
}

// boundary between the parts, which programs write in their own ways too.
func (s *inspector) boundary(other, express bool) {
	if s.tree == nil {
		return
	}
	if b := s.tree.Root.Params["boundary"]; b != "" {
		s.note(programBoundary, other && strings.Contains(b, "=_NextPart_") || express && !outlookBoundary.MatchString(b))
	}
}
